"""The thresholds of score and map; docs/references.md has the formulas ("How the threshold is calculated")."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.config.settings import PartsPrior
from anomalygpt.datasets.findings import Language
from anomalygpt.inference.outputs import TEXTS

PRIOR_SD = 0.15  # s0: of the logarithm, between good photos of one part
PRIOR_STRENGTH = 6.0  # k, by the references alone
PARTS_STRENGTH = 30.0  # k, with the numbers of other parts
K_EXPONENT = 0.12  # a
SHARPNESS = 2.0  # of the probability: its log-odds rise by so much per sd
# The least probability of a defect. On parts that the calibration has not seen, so many of the photos whose score is
# far below the threshold have a defect that the map does not show.
NOT_SHOWN = 0.08
LOWEST = 0.05  # the smallest threshold: two equal references have no distance, and all else would be anomalous
# On ten parts, log scores of defective photos lie so far above the centre, with this standard deviation.
DEFECTIVE_ABOVE, DEFECTIVE_SD = 0.45, 0.26
GOOD_BEFORE, DEFECTIVE_BEFORE = 7.0, 3.0  # photos that the mixture's shares are worth before any is seen
ROUNDS = 30  # of expectation maximisation
MOST_UNLABELLED = 200  # the latest ones count: conditions change
LOWEST_SDS = 3.0  # a good photo counts as at most so far below the centre: it may be one of the references
# The threshold is at most this quantile of the bad photos' scores, so that one wrong label of many does not decide it,
# but not below the centre by less than so many standard deviations.
BAD_QUANTILE, BOUND_SDS = 0.2, 0.5
# Chosen so that one good set in twenty is accused (benchmarks/quality/verdict.md): how far the logarithm of a held-out
# score may lie above its centre, and how much the other references weigh in that, beside other parts.
ODD_BEYOND, OWN_SHARE = 0.48, 0.3
CONFIDENCE = 0.95
ENOUGH = 8  # more references hardly change how many verdicts are right
FEWEST_COMPARED = 3  # of two unlike photos nobody knows which is the odd one

Observed = Mapping[float, bool | None]  # an inspected photo's score -> whether a person called it good; None: nobody


@dataclass(frozen=True)
class Calibration:
    """Of maps that come from references."""

    threshold: float  # of pixels; exceeded by the maximum of a good photo's map at the false-alarm rate
    score_threshold: float  # exceeded by a good photo's score at that rate; there the probability is one half
    slope: float  # log-odds per unit of the score's logarithm

    def probability(self, score: float) -> float:
        """Of a defect: logistic in the logarithm of the score; below one half compressed to ``NOT_SHOWN``..0.5."""
        odds = self.slope * math.log(max(score, LOWEST**2) / self.score_threshold)
        probability = 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))
        return max(probability, NOT_SHOWN + (1 - 2 * NOT_SHOWN) * probability)


@dataclass(frozen=True)
class TextCalibration:
    """Of text maps, which are probabilities themselves: unchanged where the threshold is one half."""

    threshold: float

    @property
    def score_threshold(self) -> float:
        """The same as of pixels."""
        return self.threshold

    def probability(self, score: float) -> float:
        """Piecewise linear in the score, 0..1: 0, one half at the threshold, and 1."""
        if score <= self.threshold:
            return max(0.0, score) / (2 * self.threshold) if self.threshold else 0.5
        return 1 - (1 - min(1.0, score)) / (2 * (1 - self.threshold))


@dataclass(frozen=True)
class Posterior:
    """What is known of the logarithm of a good photo's score."""

    centre: float
    error: float  # standard deviation of the centre
    freedom: float  # degrees of freedom of the variance
    squares: float  # sum of squared deviations that these are worth

    @property
    def variance(self) -> float:
        """Of one photo's about the centre."""
        return self.squares / self.freedom

    @property
    def sd(self) -> float:
        """Of a new photo's."""
        return math.sqrt(self.variance + self.error**2)

    def after(self, logs: NDArray[np.float64], weights: NDArray[np.float64]) -> "Posterior":
        """The posterior after photos (N,) with these weights."""
        if not (total := float(weights.sum())):
            return self
        mean = float(weights @ logs) / total
        precision = 1 / self.error**2 + total / self.variance
        centre = (self.centre / self.error**2 + total * mean / self.variance) / precision
        squares = self.squares + float(weights @ (logs - mean) ** 2)
        return Posterior(centre, precision**-0.5, self.freedom + total, squares)

    def after_unlabelled(self, logs: NDArray[np.float64]) -> "Posterior":
        """The posterior after photos (N,) of which any may be defective."""
        posterior, share = self, GOOD_BEFORE / (GOOD_BEFORE + DEFECTIVE_BEFORE)
        for _ in range(ROUNDS if len(logs) else 0):
            good, defective = (
                np.exp(-0.5 * ((logs - centre) / sd) ** 2) / sd
                for centre, sd in ((posterior.centre, posterior.sd), (posterior.centre + DEFECTIVE_ABOVE, DEFECTIVE_SD))
            )
            weights = share * good / (share * good + (1 - share) * defective)
            share = (weights.sum() + GOOD_BEFORE) / (len(logs) + GOOD_BEFORE + DEFECTIVE_BEFORE)
            posterior = self.after(logs, weights)
        return posterior


def calibrate(
    held_out_scores: Sequence[float],
    held_out_maps: Tensor,
    false_alarm_rate: float,
    *,
    references: int,
    parts: PartsPrior | None = None,
    scale: float = 1.0,
    observed: Observed = {},  # noqa: B006 (read only)
) -> Calibration:
    """Calibrates by maps (n, 1, S, S) of good photos that the bank of K ``references`` did not hold, and their scores.

    ``parts`` is what is known of other parts, in maps of the same kind, to whose scores these are in a ``scale``;
    ``observed`` are photos that were inspected with these references.
    """
    logs = [math.log(max(value, LOWEST**2)) for value in held_out_scores]
    mean, single = sum(logs) / len(logs), references == 1
    count, squares = (1, 0.0) if single else (len(logs), sum((log - mean) ** 2 for log in logs))
    if parts is None:
        center = mean if single else mean + K_EXPONENT * math.log((references - 1) / references)
        freedom = PRIOR_STRENGTH + count - 1
        squares += PRIOR_STRENGTH * PRIOR_SD**2
        error = math.sqrt(squares / freedom / count)
    else:
        usual, held_out, weight, error = parts.at(references)
        center = usual + math.log(scale) + weight * (mean - math.log(scale) - held_out)
        freedom = PARTS_STRENGTH + count - 1
        squares += PARTS_STRENGTH * parts.spread**2
    posterior = Posterior(center, error, freedom, squares)
    floor = max(2 * math.log(LOWEST), posterior.centre - LOWEST_SDS * posterior.sd)
    good, bad, unlabelled = (
        np.array([max(score, LOWEST**2) for score, is_good in observed.items() if is_good is label])
        for label in (True, False, None)
    )
    posterior = posterior.after(np.log(good).clip(min=floor), np.ones(len(good)))
    posterior = posterior.after_unlabelled(np.log(unlabelled).clip(min=floor))
    highest = posterior.centre + posterior.sd * float(stdtrit(posterior.freedom, 1 - false_alarm_rate))
    if len(bad):
        lowest = posterior.centre + BOUND_SDS * posterior.sd
        highest = min(highest, max(math.log(np.quantile(bad, BAD_QUANTILE)), lowest))
    score_threshold = math.exp(highest)
    # A map's maximum lies above its score by the same factor as on the held-out maps.
    peaks = [math.log(max(value, LOWEST**2)) for value in held_out_maps.flatten(1).amax(dim=1).tolist()]
    above = math.exp(sum(peaks) / len(peaks) - mean)
    return Calibration(max(LOWEST, score_threshold * above), max(LOWEST, score_threshold), SHARPNESS / posterior.sd)


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

    @classmethod
    def of(
        cls, tokens: Tensor, scores: Sequence[float], names: Sequence[str], about: InferenceConfig, usual: float | None
    ) -> "ReferenceReport":
        """Judges K references by unit class tokens (K, D) and, where all have one, their scores against each other."""
        count, distances = len(tokens), 1 - tokens.float() @ tokens.float().T
        distance = float(distances[~torch.eye(count, dtype=torch.bool)].mean()) if count > 1 else None
        foreign = foreign_ones(distances, about.other_part_above)
        odd = set(odd_ones(scores, usual) if len(scores) == count else ()).difference(foreign)
        rates = about.false_alarm_rate, 1 - (1 - CONFIDENCE) ** (1 / count)
        return cls(tuple(names), distance, tuple(foreign), tuple(sorted(odd)), *rates)

    def lines(self, language: Language = "en") -> list[str]:
        """For people, warnings last."""
        texts, count = TEXTS[language], len(self.names)
        line = texts["one_reference" if count == 1 else "several_references"].format(count=count)
        line += "" if self.distance is None else texts["alike"].format(distance=self.distance)
        line += texts["worth"].format(rate=100 * self.false_alarm_rate, guaranteed=100 * self.guaranteed_rate)
        line += texts["more_references"].format(enough=ENOUGH) if count < ENOUGH else ""
        odd = [(kind, self.names[index]) for kind in ("foreign", "odd") for index in getattr(self, kind)]
        return [line, *(texts[kind].format(name=name) for kind, name in odd)]


def foreign_ones(distances: Tensor, other_part_above: float | None) -> list[int]:
    """The indices of references whose distances (K, K) from all others are above a limit; none of fewer than three."""
    if len(distances) < FEWEST_COMPARED or other_part_above is None:
        return []
    return (distances > other_part_above).fill_diagonal_(True).all(dim=1).nonzero()[:, 0].tolist()


def odd_ones(held_out_scores: Sequence[float], usual: float | None = None) -> list[int]:
    """The indices of scores far above the others and, if known, other parts' ``usual`` logarithm; from three on."""
    logs = np.log(np.maximum(held_out_scores, 1e-6))
    if len(logs) < FEWEST_COMPARED:
        return []
    others = (logs.sum() - logs) / (len(logs) - 1)
    centres = others if usual is None else OWN_SHARE * others + (1 - OWN_SHARE) * usual
    return [int(index) for index in np.flatnonzero(logs - centres > ODD_BEYOND)]
