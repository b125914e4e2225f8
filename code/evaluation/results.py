"""From what was measured to metrics: of a class in a round, of a class over rounds, of all classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anomalygpt.evaluation import pixels
from anomalygpt.evaluation.examples import Examples
from anomalygpt.evaluation.measured import Measured, PhotoRow, Setting
from anomalygpt.evaluation.metrics import (
    answer_accuracy,
    common_hindsight_accuracy,
    false_alarm_rate,
    hindsight_accuracy,
    image_ap,
    image_auroc,
    image_f1_max,
    mean_known,
    recall,
    share,
    spread_known,
)
from anomalygpt.evaluation.protocol import Cell

CURVE_POINTS = 400  # of a drawn curve
EVEN = 0.5  # a photo is taken to be anomalous where that is more probable than not

MAP_METRICS = {
    "image_auroc": "image-AUROC",
    "image_ap": "image-AP",
    "image_f1_max": "image-F1-max",
    "pixel_auroc": "pixel-AUROC",
    "pixel_ap": "pixel-AP",
    "pixel_f1_max": "pixel-F1-max",
    "aupro": "AUPRO",
}
VERDICT_METRICS = {
    "verdict_accuracy": "verdict accuracy",
    "recall": "recall",
    "false_alarm_rate": "false alarms",
    "score_accuracy": "by score",
    "hindsight_accuracy": "in hindsight",
    "answer_accuracy": "answer accuracy",
    "position_accuracy": "position",
    "position_cell_accuracy": "position (cell)",
}
METRICS = MAP_METRICS | VERDICT_METRICS
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")


@dataclass(frozen=True)
class Curve:
    """A curve to draw, (N,) each in 0..1."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class CategoryResult:
    """One class in one round. Metrics are 0..1, None where they are not defined or were not measured.

    Attributes:
        references: the good photos that the maps were drawn against, none for zero-shot.
        metrics: by the keys of ``METRICS``.
        bounds: of the pixel metrics, how far the exact values may lie from the given ones.
        masked_photos: photos that pixel metrics are of: good, or with a mask.
        regions: marked defects in them.
        no_verdict: answers of the language model's own that say neither yes nor no.
        placed: answers that position accuracy is of: a rightful yes about a photo with a mask.
        seconds: that measuring took, summed over processes.
        setting: how photos, maps and masks met.
        curves: ``roc`` over photos, ``pixel_roc``, ``pro``; each only where it is defined.
    """

    cell: Cell
    references: tuple[str, ...]
    rows: tuple[PhotoRow, ...]
    metrics: dict[str, float | None]
    bounds: dict[str, float]
    masked_photos: int
    regions: int
    no_verdict: int
    placed: int
    seconds: float
    setting: Setting | None
    curves: dict[str, Curve]
    examples: Examples

    @property
    def anomalous(self) -> int:
        """How many test photos have a defect."""
        return sum(row.is_anomalous for row in self.rows)


def summarise(cell: Cell, references: tuple[str, ...], measured: Measured, chat: bool) -> CategoryResult:
    """A cell's metrics. ``chat``: whether questions were asked."""
    rows = tuple(sorted(measured.rows, key=lambda row: row.photo))
    found = pixels.curves(measured.pixels)
    bounded = _pixel_metrics(found)
    asked_where = [row for row in rows if row.said and row.is_anomalous and row.positions]
    metrics = _image_metrics(rows)
    metrics |= {key: value.value if value else None for key, value in bounded.items()}
    metrics |= _verdict_metrics(rows, asked_where, chat)
    return CategoryResult(
        cell=cell,
        references=references,
        rows=rows,
        metrics={key: metrics[key] for key in METRICS},
        bounds={key: value.error for key, value in bounded.items() if value},
        masked_photos=measured.pixels.photos,
        regions=measured.pixels.regions,
        no_verdict=sum(row.own_said is None for row in rows) if chat else 0,
        placed=len(asked_where),
        seconds=measured.seconds,
        setting=measured.setting,
        curves=_curves(rows, found),
        examples=measured.examples,
    )


def _image_metrics(rows: Sequence[PhotoRow]) -> dict[str, float | None]:
    scores, truth = [row.score for row in rows], [row.is_anomalous for row in rows]
    return {
        "image_auroc": image_auroc(scores, truth),
        "image_ap": image_ap(scores, truth),
        "image_f1_max": image_f1_max(scores, truth),
    }


def _pixel_metrics(found: pixels.PixelCurves | None) -> dict[str, pixels.Bounded | None]:
    if found is None:
        return dict.fromkeys(PIXEL_METRICS)
    values = (pixels.auroc(found), pixels.average_precision(found), pixels.f1_max(found), pixels.aupro(found))
    return dict(zip(PIXEL_METRICS, values, strict=True))


def _verdict_metrics(rows: Sequence[PhotoRow], asked_where: Sequence[PhotoRow], chat: bool) -> dict[str, float | None]:
    truth, verdicts = [row.is_anomalous for row in rows], [row.verdict for row in rows]
    return {
        "verdict_accuracy": answer_accuracy(verdicts, truth),
        "recall": recall(verdicts, truth),
        "false_alarm_rate": false_alarm_rate(verdicts, truth),
        "score_accuracy": answer_accuracy([row.probability > EVEN for row in rows], truth),
        "hindsight_accuracy": hindsight_accuracy([row.score for row in rows], truth),
        "answer_accuracy": answer_accuracy([row.own_said for row in rows], truth) if chat else None,
        # A yes that names no place is wrong in both.
        "position_accuracy": share(row.named[:1] != () and row.named[0] in row.positions for row in asked_where),
        "position_cell_accuracy": share(bool(row.named_holds_defect) for row in asked_where),
    }


def _curves(rows: Sequence[PhotoRow], found: pixels.PixelCurves | None) -> dict[str, Curve]:
    from sklearn.metrics import roc_curve

    drawn: dict[str, Curve] = {}
    truth = [row.is_anomalous for row in rows]
    if any(truth) and not all(truth):
        false_rate, true_rate, _ = roc_curve(truth, [row.score for row in rows])
        drawn["roc"] = Curve(false_rate, true_rate)
    if found is not None:
        drawn["pixel_roc"] = _thinned(found.false_rate, found.true_rate)
        if not np.isnan(found.overlap).any():
            drawn["pro"] = _thinned(found.false_rate, found.overlap)
    return drawn


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> Curve:
    """A curve by points that lie evenly along it."""
    along = x + y
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS)).clip(max=len(x) - 1))
    return Curve(x[chosen], y[chosen])


@dataclass(frozen=True)
class Spread:
    """A mean and, of two rounds or more, the standard deviation (divided by the number of rounds)."""

    mean: float | None
    std: float | None = None


@dataclass(frozen=True)
class ShotsResult:
    """All classes and rounds with K references."""

    shots: int
    results: tuple[CategoryResult, ...]

    @property
    def rounds(self) -> list[int]:
        """The rounds by number."""
        return sorted({result.cell.round for result in self.results})

    @property
    def class_names(self) -> list[str]:
        """The classes, sorted."""
        return sorted({result.cell.class_name for result in self.results})

    def of_class(self, name: str) -> list[CategoryResult]:
        """A class's results, round after round."""
        return sorted((r for r in self.results if r.cell.class_name == name), key=lambda result: result.cell.round)

    def over_rounds(self, name: str, metric: str) -> Spread:
        """A class's metric, mean and spread over rounds."""
        values = [result.metrics[metric] for result in self.of_class(name)]
        return Spread(mean_known(values), spread_known(values))

    def macro(self, metric: str) -> Spread:
        """The mean over classes, of which mean and spread over rounds are taken."""
        values = [
            mean_known([r.metrics[metric] for r in self.results if r.cell.round == round_]) for round_ in self.rounds
        ]
        return Spread(mean_known(values), spread_known(values))

    def one_threshold(self) -> Spread:
        """The mean over classes of right verdicts by the best threshold for all of them, known in hindsight alone."""
        values = [
            common_hindsight_accuracy(
                [
                    ([row.score for row in r.rows], [row.is_anomalous for row in r.rows])
                    for r in self.results
                    if r.cell.round == round_
                ]
            )
            for round_ in self.rounds
        ]
        return Spread(mean_known(values), spread_known(values))

    def largest_bound(self) -> float:
        """Of all pixel metrics of all classes and rounds."""
        return max((bound for result in self.results for bound in result.bounds.values()), default=0.0)


def by_shots(results: Sequence[CategoryResult]) -> list[ShotsResult]:
    """Results grouped by their number of references, in ascending order."""
    numbers = sorted({result.cell.shots for result in results})
    return [ShotsResult(shots, tuple(r for r in results if r.cell.shots == shots)) for shots in numbers]
