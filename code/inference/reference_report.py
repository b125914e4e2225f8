"""What a set of references is worth: how many, how alike, which of them are unlike the others, what they guarantee."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomalygpt.datasets.findings import Language
from anomalygpt.inference.report import report_texts

# Chosen so that one good set in twenty is accused (benchmarks/quality/verdict.md): how far the logarithm of a held-out
# score may lie above its centre, and how much the other references weigh in that, beside other parts.
ODD_BEYOND, OWN_SHARE = 0.48, 0.3
CONFIDENCE = 0.95
ENOUGH = 8  # more references hardly change how many verdicts are right
FEWEST_COMPARED = 3  # of two unlike photos nobody knows which is the odd one


@dataclass(frozen=True)
class ReferenceReport:
    """What references say of each other."""

    names: tuple[str, ...]  # of the references; copies are not among them
    distance: float | None  # mean cosine distance between the class tokens of two of them; None of a single one
    foreign: tuple[int, ...]  # the indices of those that show another part or view than all others
    odd: tuple[int, ...]  # of those that the others would call defective: a defect, blur or another light
    false_alarm_rate: float  # the expected share
    # If the largest score of so many good photos were the threshold, at most this share of good photos would exceed
    # it, at 95 % confidence and without any model: 29 photos for 10 %, 59 for 5 %.
    guaranteed_rate: float

    def lines(self, language: Language = "en") -> list[str]:
        """For people, warnings last."""
        texts, count = report_texts(language), len(self.names)
        line = texts["one_reference" if count == 1 else "several_references"].format(count=count)
        line += "" if self.distance is None else texts["alike"].format(distance=self.distance)
        line += texts["worth"].format(rate=100 * self.false_alarm_rate, guaranteed=100 * self.guaranteed_rate)
        line += texts["more_references"].format(enough=ENOUGH) if count < ENOUGH else ""
        odd = [(kind, self.names[index]) for kind in ("foreign", "odd") for index in getattr(self, kind)]
        return [line, *(texts[kind].format(name=name) for kind, name in odd)]


def report(
    embeddings: Tensor,
    held_out_scores: Sequence[float],
    false_alarm_rate: float,
    other_part_above: float | None,
    names: Sequence[str],
    usual: float | None = None,
) -> ReferenceReport:
    """Judges K references by each other.

    Args:
        embeddings: (K, D) unit class tokens.
        held_out_scores: one per reference, from its comparison with the others; fewer where not all were held out.
        usual: see :func:`odd_ones`.
    """
    count, distances = len(embeddings), 1 - embeddings.float() @ embeddings.float().T
    distance = float(distances[~torch.eye(count, dtype=torch.bool)].mean()) if count > 1 else None
    foreign = foreign_ones(distances, other_part_above)
    odd = odd_ones(held_out_scores, usual) if len(held_out_scores) == count else []
    odd = [index for index in odd if index not in foreign]
    guaranteed_rate = 1 - (1 - CONFIDENCE) ** (1 / count)
    return ReferenceReport(tuple(names), distance, tuple(foreign), tuple(odd), false_alarm_rate, guaranteed_rate)


def foreign_ones(distances: Tensor, other_part_above: float | None) -> list[int]:
    """The indices of references whose distances (K, K) from all others are above a limit; none of fewer than three."""
    if len(distances) < FEWEST_COMPARED or other_part_above is None:
        return []
    far = (distances > other_part_above).fill_diagonal_(True)
    return far.all(dim=1).nonzero()[:, 0].tolist()


def odd_ones(held_out_scores: Sequence[float], usual: float | None = None) -> list[int]:
    """The indices of scores that are far above the others' and those of other parts; none of fewer than three.

    ``usual``: mean logarithm of such scores over other parts; None: it is not known.
    """
    logs = np.log(np.maximum(held_out_scores, 1e-6))
    if len(logs) < FEWEST_COMPARED:
        return []
    others = (logs.sum() - logs) / (len(logs) - 1)
    centres = others if usual is None else OWN_SHARE * others + (1 - OWN_SHARE) * usual
    return [int(index) for index in np.flatnonzero(logs - centres > ODD_BEYOND)]
