"""How fast verdicts get better with photos that a person calls good or bad, and with a stream without labels.

    python benchmarks/learning.py runs/verdict.json --prior runs/verdict.json runs/consecutive.json

Reads the scores that ``benchmarks/verdict.py`` wrote. Some of a part's test photos are drawn as those that passed by,
the others are judged; each part is calibrated by the other parts. Of a stream without labels, 30 % are defective.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from verdict import Cell, defective, fit, hindsight, read_cells, right  # adds code/ to the path

from anomalygpt.config.settings import PartsPrior
from anomalygpt.inference.calibration import calibrate

DRAWS = 20  # of photos that passed by, of each draw of references
LEFT = 8  # photos at least that are judged
DEFECTIVE_IN_STREAM = 0.3
Drawn = NDArray[np.int64]  # indices of the photos that passed by


def labelled(is_bad: NDArray[np.bool_], count: int, rng: np.random.Generator) -> Drawn:
    """Any photos."""
    return rng.permutation(len(is_bad))[: min(count, len(is_bad) - LEFT)]


def stream(is_bad: NDArray[np.bool_], count: int, rng: np.random.Generator) -> Drawn:
    """Good and defective photos in the stream's proportion, at most half of each."""
    groups = []
    for group, share in (
        (np.flatnonzero(~is_bad), 1 - DEFECTIVE_IN_STREAM),
        (np.flatnonzero(is_bad), DEFECTIVE_IN_STREAM),
    ):
        groups.append(rng.permutation(group)[: min(round(count * share), len(group) // 2)])
    return np.concatenate(groups)


def judged(
    cells: list[Cell],
    priors: dict[str, PartsPrior],
    draw: Callable[[NDArray[np.bool_], int, np.random.Generator], Drawn],
    count: int,
    label: Callable[[bool], bool | None],
) -> str:
    """Right verdicts, those of the worst part, false alarms, right ones in hindsight, and how many photos passed."""
    rng, found = np.random.default_rng(0), dict[str, list[tuple[float, ...]]]()
    for cell in cells:
        scores, is_bad = np.array([*cell["good"], *cell["defective"]]), defective(cell)
        for _ in range(DRAWS):
            passed = draw(is_bad, count, rng)
            rest = np.setdiff1d(np.arange(len(scores)), passed)
            if not 0 < is_bad[rest].sum() < len(rest):
                continue
            observed = {float(scores[index]): label(bool(is_bad[index])) for index in passed}
            maps, prior = torch.tensor(cell["held_out"])[:, None, None, None], priors[cell["part"]]
            threshold = calibrate(
                cell["held_out"], maps, 0.1, references=cell["shots"], parts=prior, observed=observed
            ).score_threshold
            above = (scores[rest] > threshold).astype(float)
            alarms = float(above[~is_bad[rest]].mean())
            values = (right(above, is_bad[rest]), alarms, hindsight(scores[rest], is_bad[rest]), float(len(passed)))
            found.setdefault(cell["part"], []).append(values)
    means = np.array([np.mean(values, axis=0) for values in found.values()])
    verdicts, alarms, best, passed = means.mean(axis=0) * (100, 100, 100, 1)
    return f"{verdicts:.1f} | {100 * means[:, 0].min():.0f} | {alarms:.1f} | {best:.1f} | {passed:.0f}"


KINDS: dict[str, tuple[Callable[..., Drawn], Callable[[bool], bool | None]]] = {
    "called good or bad": (labelled, lambda is_bad: not is_bad),
    "not called anything": (stream, lambda is_bad: None),
}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Verdicts after photos with and without labels.")
    parser.add_argument("source", type=Path, help="the JSON file of benchmarks/verdict.py")
    parser.add_argument("--prior", type=Path, nargs="+", help="JSON files of runs that the calibration is fitted on")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 5, 10, 30])
    arguments = parser.parse_args()
    cells = read_cells([arguments.source])
    parts, fitted_on = sorted({cell["part"] for cell in cells}), read_cells(arguments.prior or [arguments.source])
    priors = {part: fit([cell for cell in fitted_on if cell["part"] != part]) for part in parts}
    print("| references | photos that passed | right | worst part | false alarms | in hindsight | passed, mean |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for shots in sorted({cell["shots"] for cell in cells}):
        some = [cell for cell in cells if cell["shots"] == shots]
        for kind, (draw, label) in KINDS.items():
            for count in arguments.counts:
                print(f"| {shots} | {count} {kind} | {judged(some, priors, draw, count, label)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
