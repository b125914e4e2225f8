"""Measures cells on the path that ``predict.py`` and the demo take, and turns what was measured into metrics."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomalygpt.datasets import loco
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import marks_position, positions_of
from anomalygpt.datasets.transforms import load_image
from anomalygpt.evaluation import metrics
from anomalygpt.evaluation.cells import CellResult, PhotoResult
from anomalygpt.evaluation.figures import Examples
from anomalygpt.evaluation.ground_truth import Resolution, choose_mask_rule, ground_truth, in_words
from anomalygpt.evaluation.pixels import Curve, PixelCounts
from anomalygpt.evaluation.protocol import Cell, Plan, photo_name, photo_seed, test_photos
from anomalygpt.evaluation.published import METRICS
from anomalygpt.inference.answers import parse_positions, parse_verdict
from anomalygpt.inference.predictor import ImageResult, Prediction, Predictor

CURVE_POINTS = 400  # of a drawn curve


@dataclass(frozen=True)
class Evaluator:
    """Measures one cell after the other.

    Attributes:
        predictor: keeps the references of the last cell afterwards.
        records: of all classes.
        root: the data's root, or the folder of their table.
        kind: how they are laid out.
        official: whether the config asks for the released code's geometry.
        resolution: measure on the ``map``'s pixels or on the ``photo``'s own.
        with_llm: whether the predictor answers questions.
    """

    predictor: Predictor
    records: Sequence[ImageRecord]
    plan: Plan
    root: Path
    kind: str
    official: bool = False
    resolution: Resolution = "map"
    with_llm: bool = True

    def measure(self, cell: Cell, on_photo: Callable[[], object] = lambda: None) -> CellResult:
        """Measures a cell.

        Args:
            on_photo: called after each photo.

        Raises:
            UserError: there are too few references.
            DatasetError: a photo or a mask can't be read.
        """
        references = self.plan.references(self.records, cell)
        torch.manual_seed(photo_seed(self.plan.seed, cell, cell.class_name))
        self.predictor.set_references([load_image(record.image) for record in references])
        rule = choose_mask_rule(self.kind, self.official, self.resolution)
        saturated = loco.can_saturate(self.records)
        counts, examples, photos, seconds = PixelCounts(), Examples(), [], 0.0
        for record in test_photos(self.records, cell.class_name):
            started, name = time.monotonic(), photo_name(record, self.root)
            torch.manual_seed(photo_seed(self.plan.seed, cell, name))
            photo = load_image(record.image)
            result = self.predictor.inspect(photo, record.class_name)
            found = self.predictor.ask(result, detection_question(cell.class_name, with_description=False))
            transform, seen = self.predictor.transform, None
            maps = in_words(rule, transform, result.model_map.shape[-1])
            if record.mask is not None or not record.is_anomalous:
                truth = ground_truth(record, result, transform, rule, saturated)
                counts.add(truth.scores, truth.mask, truth.regions)
                examples.offer(name, record.is_anomalous, photo, truth.mask, result)
                seen = truth.seen
            photos.append(_photo_result(name, record, result, found, seen))
            seconds += time.monotonic() - started
            on_photo()
        names = tuple(photo_name(record, self.root) for record in references)
        return summarise(cell, names, photos, counts, examples, maps, saturated, seconds, self.with_llm)


def _photo_result(
    name: str, record: ImageRecord, result: ImageResult, found: Prediction, seen: NDArray[np.bool_] | None
) -> PhotoResult:
    said, named = parse_verdict(found.answer), parse_positions(found.answer)
    positions: tuple[str, ...] = ()
    holds = None
    if seen is not None and seen.any():
        positions, holds = positions_of(seen), bool(named) and marks_position(seen, named[0])
    return PhotoResult(
        photo=name,
        defect=record.defect,
        is_anomalous=record.is_anomalous,
        has_pixels=seen is not None,
        score=result.score,
        threshold=result.threshold,
        probability=result.probability,
        verdict=found.is_anomalous,
        verdict_from=found.verdict_from,
        answer=found.answer,
        said=said,
        # Where the score overruled the language model, the answer was generated again, to agree with the score.
        own_said=said if found.answer_agrees else not result.is_anomalous,
        positions=positions,
        named=named,
        named_holds_defect=holds if said else None,
    )


def summarise(
    cell: Cell,
    references: tuple[str, ...],
    photos: Sequence[PhotoResult],
    counts: PixelCounts,
    examples: Examples,
    maps: str,
    saturated: bool = False,
    seconds: float = 0.0,
    with_llm: bool = True,
) -> CellResult:
    """A cell's result from what was measured of its photos; arguments as of :class:`Evaluator` and its result."""
    from sklearn.metrics import roc_curve

    scores, truth = [photo.score for photo in photos], [photo.is_anomalous for photo in photos]
    verdicts = [photo.verdict for photo in photos]
    placed = [photo for photo in photos if photo.said and photo.is_anomalous and photo.positions]
    pixels, pixel_curves = counts.metrics()
    found: dict[str, float | None] = {
        **metrics.image_metrics(scores, truth),
        **{key: value for key, (value, _) in pixels.items()},
        "verdict_accuracy": metrics.accuracy(verdicts, truth),
        "recall": metrics.recall(verdicts, truth),
        "false_alarm_rate": metrics.false_alarm_rate(verdicts, truth),
        "score_accuracy": metrics.accuracy([photo.probability > 0.5 for photo in photos], truth),
        "hindsight_accuracy": metrics.hindsight_accuracy([(scores, truth)]),
        "answer_accuracy": metrics.accuracy([photo.own_said for photo in photos], truth) if with_llm else None,
        # A yes that names no place is wrong in both.
        "position_accuracy": metrics.share(bool(p.named) and p.named[0] in p.positions for p in placed),
        "position_cell_accuracy": metrics.share(bool(photo.named_holds_defect) for photo in placed),
    }
    curves = {name: _thinned(curve) for name, curve in pixel_curves.items()}
    if any(truth) and not all(truth):
        x, y, _ = roc_curve(truth, scores)
        curves["roc"] = x.tolist(), y.tolist()
    return CellResult(
        cell=cell,
        references=references,
        photos=tuple(sorted(photos, key=lambda photo: photo.photo)),
        metrics={key: found.get(key) for key in METRICS},
        bounds={key: bound for key, (_, bound) in pixels.items()},
        masked_photos=counts.photos,
        regions=counts.regions,
        no_verdict=sum(photo.own_said is None for photo in photos) if with_llm else 0,
        placed=len(placed),
        seconds=seconds,
        maps=maps,
        saturated=saturated,
        curves=curves,
        examples=examples.best(),
    )


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """A curve by points that lie evenly along it."""
    x, y = curve
    along = x + y
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS)).clip(max=len(x) - 1))
    return x[chosen].tolist(), y[chosen].tolist()
