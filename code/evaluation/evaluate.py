"""Measures cells with the same calls as ``predict.py`` and the demo, and computes their metrics."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalygpt.config.load import load_config
from anomalygpt.datasets import loco
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.overview import overview
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import marks_position, positions_of
from anomalygpt.datasets.tree import index_pair
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError, set_strict
from anomalygpt.evaluation.cells import Measure, build_predictor, measure_cells
from anomalygpt.evaluation.figures import Examples, write_sheet
from anomalygpt.evaluation.ground_truth import (
    CONNECTED,
    SATURATED,
    Resolution,
    choose_mask_rule,
    describe_rule,
    ground_truth,
)
from anomalygpt.evaluation.metrics import PixelCounts, hindsight_accuracy, image_metrics
from anomalygpt.evaluation.protocol import Cell, Plan, photo_name, photo_seed, test_photos
from anomalygpt.evaluation.provenance import describe_references, facts_of, fingerprint, training_warnings
from anomalygpt.evaluation.tables import METRICS, official_dataset, publish, report, title_of
from anomalygpt.inference.answers import parse_positions, parse_verdict
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult, Prediction
from anomalygpt.model.build import installed_config


@dataclass(frozen=True)
class Evaluator:
    """Measures one cell after the other.

    Attributes:
        root: the data's root, or the folder of their table.
        official: whether the config selects the released code's geometry.
        resolution: measure on the pixels of the ``map`` or of the ``photo``.
        pictures: a folder for a sheet per class and number of references, of the first round.
    """

    predictor: Predictor
    records: Sequence[ImageRecord]
    plan: Plan
    root: Path
    kind: str
    official: bool = False
    resolution: Resolution = "map"
    with_llm: bool = True
    pictures: Path | None = None

    def measure(self, cell: Cell, on_photo: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """Measures a cell, and calls ``on_photo`` after each photo.

        Returns:
            JSON-ready values: those of :func:`summarise`, the names of the references, the time in seconds, how
            photos, maps and masks were aligned in words, and whether AUPRO saturates.

        Raises:
            UserError: there are too few references.
            DatasetError: a photo or a mask can't be read.
        """
        references = self.plan.references(self.records, cell)
        torch.manual_seed(photo_seed(self.plan.seed, cell, cell.class_name))
        self.predictor.set_references([load_image(record.image) for record in references])
        transform, rule = self.predictor.transform, choose_mask_rule(self.kind, self.official, self.resolution)
        saturated = loco.can_saturate(self.records)
        counts, examples, photos, codings = PixelCounts(), Examples(), [], set()
        draws = self.pictures is not None and cell.round in (0, self.plan.rounds[0])
        started = time.monotonic()
        for record in test_photos(self.records, cell.class_name):
            name = photo_name(record, self.root)
            torch.manual_seed(photo_seed(self.plan.seed, cell, name))
            photo = load_image(record.image)
            result = self.predictor.inspect(photo, record.class_name)
            prediction = self.predictor.ask(result, detection_question(cell.class_name, with_description=False))
            model_mask = np.zeros((1, 1), dtype=bool)
            if record.masks or not record.is_anomalous:
                target = ground_truth(record, result, transform, rule, saturated)
                counts.add(target.scores, target.mask, target.regions)
                if draws:
                    examples.offer(name, record.is_anomalous, photo, target.mask, result)
                model_mask = target.model_mask
                codings.add(target.coding)
            photos.append(_photo_row(name, record, result, prediction, model_mask))
            on_photo()
        maps = describe_rule(rule, transform, result.model_map.shape[-1])
        codings.discard("")
        found = summarise(photos, counts, self.with_llm) | {
            "references": [photo_name(record, self.root) for record in references],
            "seconds": time.monotonic() - started,
            "maps": f"{maps}; masks read as {', '.join(sorted(codings))}" if codings else maps,
            "saturated": saturated,
        }
        if draws and self.pictures:
            write_sheet(self.pictures / f"cases_{title_of(cell.shots).lower()}", cell, found, examples)
        return found


def _photo_row(
    name: str, record: ImageRecord, result: ImageResult, prediction: Prediction, mask: NDArray[np.bool_]
) -> dict[str, Any]:
    said, named = parse_verdict(prediction.answer), parse_positions(prediction.answer)
    return {
        "photo": name,
        "defect": record.defect,
        "is_anomalous": record.is_anomalous,
        "score": result.score,
        "threshold": result.threshold,
        "probability": result.probability,
        "verdict": prediction.is_anomalous,
        "verdict_from": prediction.verdict_from,
        "answer": prediction.answer,
        "said": said,
        # Where the score overruled the language model, the answer was generated again, to agree with the score.
        "own_said": said if prediction.answer_agrees else not result.is_anomalous,
        # Of the marked defects, largest first, in the photo as the model was shown it; and those in the answer.
        "positions": positions_of(mask),
        "named": named,
        "named_holds_defect": bool(named) and bool(marks_position(mask, named[0])) if mask.any() and said else None,
    }


def summarise(photos: Sequence[dict[str, Any]], counts: PixelCounts, with_llm: bool = True) -> dict[str, Any]:
    """A cell's photos, sorted, and its metrics, 0..1, None where undefined or not measured.

    Returns:
        ``photos`` and ``metrics``; the number of ``masked_photos`` (good, or with a mask) and ``regions`` in the pixel
        metrics, of answers by the language model itself without a yes or no (``no_verdict``), and of answers in
        position accuracy, a correct yes about a photo with a mask (``placed``).
    """
    scores, anomalous = [photo["score"] for photo in photos], [photo["is_anomalous"] for photo in photos]
    bad, good = ([photo for photo in photos if photo["is_anomalous"] is kind] for kind in (True, False))
    placed = [photo for photo in bad if photo["said"] and photo["positions"]]
    found = {
        **image_metrics(scores, anomalous),
        **counts.metrics(),
        "verdict_accuracy": _share(photo["verdict"] == photo["is_anomalous"] for photo in photos),
        "recall": _share(photo["verdict"] for photo in bad),
        "false_alarm_rate": _share(photo["verdict"] for photo in good),
        "score_accuracy": _share((photo["probability"] > 0.5) == photo["is_anomalous"] for photo in photos),
        "hindsight_accuracy": hindsight_accuracy([(scores, anomalous)]),
        # A yes without a position is wrong in both.
        "position_accuracy": _share(photo["named"] and photo["named"][0] in photo["positions"] for photo in placed),
        "position_cell_accuracy": _share(photo["named_holds_defect"] for photo in placed),
    }
    if with_llm:
        found["answer_accuracy"] = _share(photo["own_said"] == photo["is_anomalous"] for photo in photos)
    return {
        "photos": sorted(photos, key=lambda photo: photo["photo"]),
        "metrics": {key: found.get(key) for key in METRICS},
        "masked_photos": counts.photos,
        "regions": counts.regions,
        "no_verdict": sum(photo["own_said"] is None for photo in photos) if with_llm else 0,
        "placed": len(placed),
    }


def _share(flags: Iterable[object]) -> float | None:
    values = [bool(flag) for flag in flags]
    return sum(values) / len(values) if values else None


def evaluate(arguments: argparse.Namespace) -> None:
    """``run_eval.py``: measures what its arguments ask for, prints the report, and writes it.

    Raises:
        UserError: the photos or the options can't be measured so.
    """
    # An option without effect would make the numbers look like those of another protocol.
    if not any(arguments.shots) and (arguments.round or arguments.rounds > 1 or arguments.reference_choice == "random"):
        raise UserError("--round, --rounds and --reference-choice choose references, and there are none; add --shots K")
    config = load_config(arguments.config or installed_config(), arguments.set)
    set_strict(arguments.strict)
    seed = config.seed if arguments.seed is None else arguments.seed
    rounds = tuple(range(arguments.round, arguments.round + arguments.rounds))
    plan = Plan(tuple(arguments.shots), rounds, arguments.reference_choice, seed)
    if arguments.good:
        records = index_pair(arguments.good, arguments.bad, arguments.masks, plan.good_photos_needed)
    else:
        records = INDEXERS[arguments.kind](arguments.data, arguments.classes)
    plan.check(records)
    with_llm = not arguments.no_chat and config.llm is not None
    settings = fingerprint(config, with_llm) | {
        "--kind": arguments.kind,
        "--data": str(arguments.data.resolve()),
        "--resolution": arguments.resolution,
        "--reference-choice": plan.choice,
        "--seed": seed,
    }

    def build(process: Process) -> Measure:
        if process.is_main:  # it reads every mask
            print(*overview(records), "", sep="\n", file=sys.stderr)
        predictor = build_predictor(config, process, with_llm=with_llm, needs_text_map=0 in plan.shots)
        official, pictures = config.inference.geometry == "official", None if arguments.no_pictures else arguments.out
        options = (arguments.root, arguments.kind, official, arguments.resolution, with_llm, pictures)
        return Evaluator(predictor, records, plan, *options).measure

    cells = {
        cell: [photo_name(record, arguments.root) for record in test_photos(records, cell.class_name)]
        for cell in plan.cells(records)
    }
    process, results = measure_cells(arguments.device, arguments.out, settings, cells, build)
    if not results:
        return
    names = sorted({cell.class_name for cell in cells})
    facts = facts_of(config, arguments.command, process, seed, results) | {
        "references": describe_references(plan),
        "notes": [
            f"data: {arguments.data} ({arguments.kind}), {len(names)} classes",
            *(f"maps and masks: {maps}" for maps in dict.fromkeys(result["maps"] for result in results)),
            f"AUPRO: {SATURATED if any(result['saturated'] for result in results) else CONNECTED}",
        ],
        "warnings": training_warnings(config, arguments.data, names),
    }
    publish(report(facts, results, official_dataset(arguments.kind, records)), arguments.out)
