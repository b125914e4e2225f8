"""Measures cells with the same calls as ``predict.py`` and the demo, and computes their metrics."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anomalygpt.datasets import loco
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import marks_position, positions_of
from anomalygpt.evaluation import metrics
from anomalygpt.evaluation.cells import CellResult, PhotoResult
from anomalygpt.evaluation.figures import Examples
from anomalygpt.evaluation.ground_truth import Resolution, choose_mask_rule, describe_rule, ground_truth
from anomalygpt.evaluation.protocol import Cell, Plan, photo_name, photo_seed, test_photos
from anomalygpt.evaluation.published import METRICS
from anomalygpt.inference.answers import parse_positions, parse_verdict
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult, Prediction


@dataclass(frozen=True)
class Evaluator:
    """Measures one cell after the other.

    Attributes:
        root: the data's root, or the folder of their table.
        official: whether the config selects the released code's geometry.
        resolution: measure on the pixels of the ``map`` or of the ``photo``.
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
        """Measures a cell, and calls ``on_photo`` after each photo.

        Raises:
            UserError: there are too few references.
            DatasetError: a photo or a mask can't be read.
        """
        references = self.plan.references(self.records, cell)
        torch.manual_seed(photo_seed(self.plan.seed, cell, cell.class_name))
        self.predictor.set_references([load_image(record.image) for record in references])
        transform, rule = self.predictor.transform, choose_mask_rule(self.kind, self.official, self.resolution)
        saturated = loco.can_saturate(self.records)
        counts, examples, photos, seconds = metrics.PixelCounts(), Examples(), [], 0.0
        codings: set[str] = set()
        for record in test_photos(self.records, cell.class_name):
            started, name = time.monotonic(), photo_name(record, self.root)
            torch.manual_seed(photo_seed(self.plan.seed, cell, name))
            photo = load_image(record.image)
            result = self.predictor.inspect(photo, record.class_name)
            prediction = self.predictor.ask(result, detection_question(cell.class_name, with_description=False))
            maps, model_mask = describe_rule(rule, transform, result.model_map.shape[-1]), None
            if record.masks or not record.is_anomalous:
                target = ground_truth(record, result, transform, rule, saturated)
                counts.add(target.scores, target.mask, target.regions)
                examples.offer(name, record.is_anomalous, photo, target.mask, result)
                model_mask = target.model_mask
                codings |= {target.coding} if target.coding else set()
            photos.append(_photo_result(name, record, result, prediction, model_mask))
            seconds += time.monotonic() - started
            on_photo()
        maps += f"; masks read as {', '.join(sorted(codings))}" if codings else ""
        names = tuple(photo_name(record, self.root) for record in references)
        return summarise(cell, names, photos, counts, examples, maps, saturated, seconds, self.with_llm)


def _photo_result(
    name: str, record: ImageRecord, result: ImageResult, prediction: Prediction, mask: NDArray[np.bool_] | None
) -> PhotoResult:
    said, named = parse_verdict(prediction.answer), parse_positions(prediction.answer)
    target = np.zeros((1, 1), dtype=bool) if mask is None else mask
    return PhotoResult(
        photo=name,
        defect=record.defect,
        is_anomalous=record.is_anomalous,
        score=result.score,
        threshold=result.threshold,
        probability=result.probability,
        verdict=prediction.is_anomalous,
        verdict_from=prediction.verdict_from,
        answer=prediction.answer,
        said=said,
        # Where the score overruled the language model, the answer was generated again, to agree with the score.
        own_said=said if prediction.answer_agrees else not result.is_anomalous,
        positions=positions_of(target),
        named=named,
        named_holds_defect=bool(named) and marks_position(target, named[0]) if target.any() and said else None,
    )


def summarise(
    cell: Cell,
    references: tuple[str, ...],
    photos: Sequence[PhotoResult],
    counts: metrics.PixelCounts,
    examples: Examples,
    maps: str,
    saturated: bool = False,
    seconds: float = 0.0,
    with_llm: bool = True,
) -> CellResult:
    """Computes a cell's metrics; arguments as in :class:`CellResult` and :class:`Evaluator`."""
    scores, anomalous = [photo.score for photo in photos], [photo.is_anomalous for photo in photos]
    placed = [photo for photo in photos if photo.said and photo.is_anomalous and photo.positions]
    found: dict[str, float | None] = {
        **metrics.image_metrics(scores, anomalous),
        **counts.metrics(),
        **metrics.verdict_metrics([photo.verdict for photo in photos], anomalous),
        "score_accuracy": metrics.accuracy([photo.probability > 0.5 for photo in photos], anomalous),
        "hindsight_accuracy": metrics.hindsight_accuracy([(scores, anomalous)]),
        "answer_accuracy": metrics.accuracy([p.own_said for p in photos], anomalous) if with_llm else None,
        # A yes without a position is wrong in both.
        "position_accuracy": metrics.fraction(bool(p.named) and p.named[0] in p.positions for p in placed),
        "position_cell_accuracy": metrics.fraction(bool(photo.named_holds_defect) for photo in placed),
    }
    return CellResult(
        cell=cell,
        references=references,
        photos=tuple(sorted(photos, key=lambda photo: photo.photo)),
        metrics={key: found.get(key) for key in METRICS},
        masked_photos=counts.photos,
        regions=counts.regions,
        no_verdict=sum(photo.own_said is None for photo in photos) if with_llm else 0,
        placed=len(placed),
        seconds=seconds,
        maps=maps,
        saturated=saturated,
        examples=examples.best(),
    )
