"""How far the best threshold in hindsight flatters: ``python benchmarks/hindsight.py A/results.json B/results.json``.

A hindsight threshold is chosen on the very photos that it is then judged on. Here the photos of the given runs of
``run_eval.py`` (halves of one data set, measured alike) are divided at random, again and again: a threshold is chosen
on one part, with its labels, and judged on the other. What it loses there to the other part's own best threshold is
lost by any rule that does not know the labels of the photos to come, however good.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIVISIONS = 200


class Photos:
    """Scores and labels of one class's photos."""

    def __init__(self, scores: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> None:
        self.scores = scores
        self.anomalous = anomalous

    def right(self, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of right verdicts at each threshold."""
        return ((self.scores > thresholds[:, None]) == self.anomalous).mean(axis=1)

    def of(self, chosen: NDArray[np.bool_]) -> "Photos":
        """Some of the photos."""
        return Photos(self.scores[chosen], self.anomalous[chosen])


Classes = Mapping[str, Photos]


def read(paths: Sequence[Path], shots: int) -> dict[str, Photos]:
    """The photos of the first round of each class, all runs together."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for path in paths:
        protocols = json.loads(path.read_text(encoding="utf-8"))["protocols"]
        for entry in next(one for one in protocols if one["shots"] == shots)["classes"]:
            photos = found.setdefault(entry["class"], [])
            photos += [(photo["score"], photo["is_anomalous"]) for photo in entry["rounds"][0]["photos"]]
    return {name: Photos(*map(np.array, zip(*photos, strict=True))) for name, photos in found.items()}


def divided(photos: Photos, rng: np.random.Generator) -> tuple[Photos, Photos]:
    """Half of the good photos and half of the anomalous ones, and the others."""
    order = rng.permutation(len(photos.scores))
    order = order[np.argsort(photos.anomalous[order], kind="stable")]
    first = np.zeros(len(order), bool)
    first[order[::2]] = True
    return photos.of(first), photos.of(~first)


def loss(one: Classes, other: Classes, thresholds: NDArray[np.float64]) -> float:
    """What the threshold that is best on some photos loses to the best one of others; mean over classes, 0..1."""
    chosen, judged = (np.mean([photos.right(thresholds) for photos in half.values()], axis=0) for half in (one, other))
    return float(judged.max() - judged[best(chosen)])


def best(right: NDArray[np.float64]) -> int:
    """The middle of the best thresholds."""
    places = np.flatnonzero(right == right.max())
    return int(places[len(places) // 2])


def losses(classes: Classes, lose: Callable[[Classes, Classes], float], seed: int) -> NDArray[np.float64]:
    """Over ``DIVISIONS`` divisions."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(DIVISIONS):
        halves = {name: divided(photos, rng) for name, photos in classes.items()}
        one, other = ({name: half[side] for name, half in halves.items()} for side in (0, 1))
        found.append(lose(one, other))
    return np.array(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="How far the best threshold in hindsight flatters.")
    parser.add_argument("results", nargs="+", type=Path, help="results.json of runs on parts of one data set")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    classes = read(arguments.results, arguments.shots)
    scores = np.unique(np.concatenate([photos.scores for photos in classes.values()]))
    thresholds = np.concatenate([[scores[0] - 1], (scores[1:] + scores[:-1]) / 2, [scores[-1] + 1]])

    def common(one: Classes, other: Classes) -> float:
        return loss(one, other, thresholds)

    def own(one: Classes, other: Classes) -> float:
        return float(np.mean([loss({name: one[name]}, {name: other[name]}, thresholds) for name in one]))

    for title, lose in (("one threshold for all classes", common), ("a threshold of each class's own", own)):
        lost = 100 * losses(classes, lose, arguments.seed)
        print(f"{title}: loses {lost.mean():.1f} ± {lost.std():.1f} points to hindsight")
    return 0


if __name__ == "__main__":
    sys.exit(main())
