"""Measures a model with the same calls as ``predict.py`` and the demo, and compares it with the ground truth."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.config.load import load_config
from anomalygpt.datasets import masks
from anomalygpt.datasets.build import INDEXERS, overview
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import positions_of
from anomalygpt.datasets.transforms import Geometry, ImageTransform
from anomalygpt.datasets.tree import index_pair
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError, set_strict
from anomalygpt.evaluation import tables
from anomalygpt.evaluation.cells import Cell, Measure, Plan, build_predictor, measure_cells, photo_name, test_photos
from anomalygpt.evaluation.figures import Examples, write_sheet
from anomalygpt.evaluation.metrics import PixelCounts, image_metrics
from anomalygpt.inference.answers import parse_positions, parse_verdict
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult, Prediction
from anomalygpt.model.build import installed_config

MVTEC_THRESHOLD = 0.1
VISA_SHARE_OF_MAXIMUM = 0.01

# How maps and masks come to lie on the same pixels.
MASK_RULES = {
    "official_mvtec": f"mask squashed, bilinear, > {MVTEC_THRESHOLD} (the paper's rule for MVTec-AD)",
    "official_visa": f"mask's short side resized, centre crop, bilinear, > {VISA_SHARE_OF_MAXIMUM:.0%} of its maximum "
    "(the paper's rule for VisA)",
    "as_photo": f"mask resized and cropped as its photo was, bilinear, > {MVTEC_THRESHOLD}",
}
OFFICIAL_GEOMETRY: dict[str, Geometry] = {"official_mvtec": "squash", "official_visa": "crop"}


def choose_mask_rule(kind: str, official: bool) -> str:
    """The rule for masks of a kind of data set; ``official``: in the released code's geometry."""
    return f"official_{kind}" if official and f"official_{kind}" in OFFICIAL_GEOMETRY else "as_photo"


def on_map(mask: Image.Image, transform: ImageTransform, side: int, rule: str) -> NDArray[np.bool_]:
    """A mask on the map's pixels, (side, side) bool; ``transform`` is that of its photo."""
    geometry = OFFICIAL_GEOMETRY.get(rule, transform.geometry)
    values = ImageTransform(side, transform.mean, transform.std, geometry).mask(mask)[0]
    return (values > (values.max() * VISA_SHARE_OF_MAXIMUM if rule == "official_visa" else MVTEC_THRESHOLD)).numpy()


class GroundTruth(NamedTuple):
    """A photo's map and marked defects; of a photo without masks, nothing is marked."""

    scores: NDArray[np.float32]  # (H, W), the map
    mask: NDArray[np.bool_]  # (H, W), True where anomalous
    model_mask: NDArray[np.bool_]  # (S, S), the mask of what the model was shown, on the pixels of its map
    coding: str = ""  # how the mask was read; empty of a good photo


def ground_truth(record: ImageRecord, result: ImageResult, transform: ImageTransform, rule: str) -> GroundTruth:
    """A photo's map and mask on the same pixels; raises DatasetError where the mask can't be read."""
    side = result.model_map.shape[-1]
    scores = result.model_map[0, 0].to("cpu", torch.float32).numpy()
    if not record.masks:
        return GroundTruth(scores, np.zeros(scores.shape, dtype=bool), np.zeros((1, 1), dtype=bool))
    image = masks.load_mask(record)
    mask = on_map(masks.own_values(record, image) if rule == "official_visa" else image, transform, side, rule)
    model_mask = mask if rule == "as_photo" else on_map(image, transform, side, "as_photo")
    return GroundTruth(scores, mask, model_mask, image.info["coding"])


@dataclass(frozen=True)
class Evaluator:
    """Measures one cell after the other."""

    predictor: Predictor
    records: Sequence[ImageRecord]
    plan: Plan
    root: Path  # the folder that photos' names start at
    rule: str = "as_photo"  # a key of MASK_RULES
    with_llm: bool = True
    batch_size: int = 8  # how many photos the models see at once
    pictures: Path | None = None  # a folder for a sheet per class and number of references, of the first round

    def measure(self, cell: Cell, on_photo: Callable[[], object] = lambda: None) -> dict[str, Any]:
        """A cell's values of :func:`summarise`, names of the references, and how maps and masks were aligned."""
        references = self.plan.references(self.records, cell)
        torch.manual_seed(cell.seed_of(self.plan.seed, cell.class_name))
        self.predictor.set_references([load_image(record.image) for record in references])
        transform, counts, examples = self.predictor.transform, PixelCounts(), Examples()
        photos, codings = [], set()
        pictures = self.pictures if cell.round == 0 else None
        for record, prediction in self._predictions(cell):
            name, result = photo_name(record, self.root), prediction.image
            target = ground_truth(record, result, transform, self.rule)
            if record.masks or not record.is_anomalous:
                counts.add(target.scores, target.mask)
            if pictures:
                examples.offer(name, record.is_anomalous, target.mask, result)
            codings.add(target.coding)
            said, named, mask = parse_verdict(prediction.answer), parse_positions(prediction.answer), target.model_mask
            row = {
                "photo": name,
                "defect": record.defect,
                "is_anomalous": record.is_anomalous,
                "score": result.score,
                "threshold": result.threshold,
                "probability": result.score_probability,
                "verdict": prediction.is_anomalous,
                "verdict_from": prediction.verdict_from,
                "answer": prediction.answer,
                "said": said,
                # Where the score overruled the language model, its answer was generated again, to agree with the score.
                "own_said": said if prediction.answer_agrees else not result.is_anomalous,
                # Of the marked defects, largest first, in the photo as the model was shown it; and those in the answer.
                "positions": positions_of(mask),
                "named": named,
            }
            photos.append(row)
            on_photo()
        side = result.model_map.shape[-1]
        maps = [f"photos: {transform.geometry}; map of {side} x {side}; {MASK_RULES[self.rule]}"]
        maps += [f"masks read as {coding}" for coding in sorted(codings) if coding]
        found = summarise(photos, counts, self.with_llm) | {"maps": "; ".join(maps)}
        found["references"] = [photo_name(record, self.root) for record in references]
        if pictures:
            write_sheet(pictures / f"cases_{tables.title_of(cell.shots).lower()}", cell, found, examples)
        return found

    def _predictions(self, cell: Cell) -> Iterator[tuple[ImageRecord, Prediction]]:
        """The cell's test photos with answers, which are generated for several at once."""
        question = detection_question(cell.class_name, with_description=False)
        tested, size = test_photos(self.records, cell.class_name), self.batch_size
        for records in (tested[start : start + size] for start in range(0, len(tested), size)):
            photos = [load_image(record.image) for record in records]
            yield from zip(records, self.predictor.predict_batch(photos, question, cell.class_name), strict=True)


def summarise(photos: Sequence[dict[str, Any]], counts: PixelCounts, with_llm: bool = True) -> dict[str, Any]:
    """A cell's photos, sorted, and its metrics, 0..1, None where undefined or not measured.

    Counts of what these rest on come with them; ``masked_photos``: good, or with a mask.
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
        # A yes without a position is wrong.
        "position_accuracy": _share(photo["named"] and photo["named"][0] in photo["positions"] for photo in placed),
    }
    if with_llm:
        found["answer_accuracy"] = _share(photo["own_said"] == photo["is_anomalous"] for photo in photos)
    return {
        "photos": sorted(photos, key=lambda photo: photo["photo"]),
        "metrics": {key: found.get(key) for key in tables.METRICS},
        "masked_photos": counts.photos,
        "regions": counts.regions,
        "no_verdict": sum(photo["own_said"] is None for photo in photos) if with_llm else 0,
        "placed": len(placed),
    }


def _share(flags: Iterable[object]) -> float | None:
    values = [bool(flag) for flag in flags]
    return sum(values) / len(values) if values else None


def evaluate(arguments: argparse.Namespace) -> None:
    """``run_eval.py``: measures what its arguments ask for, prints the report, and writes it; raises UserError."""
    given = [name for name in ("data", "good", "bad", "masks") if getattr(arguments, name)]
    if given not in (["data"], ["good", "bad"], ["good", "bad", "masks"]):
        raise UserError("name the photos by --data ROOT, or by --good DIR and --bad DIR")
    data = arguments.data or Path(os.path.commonpath([arguments.good.resolve(), arguments.bad.resolve()]))
    shots = tuple(sorted({*(arguments.shots or [0])}))
    # An option without effect would make the numbers look like those of another protocol.
    if not any(shots) and (arguments.rounds > 1 or arguments.reference_choice == "random"):
        raise UserError("--rounds and --reference-choice choose references, and there are none; add --shots K")
    config = load_config(arguments.config or installed_config(), arguments.set)
    set_strict(arguments.strict)
    plan = Plan(shots, arguments.rounds, arguments.reference_choice, config.seed)
    if arguments.good:
        records = index_pair(arguments.good, arguments.bad, arguments.masks, plan.good_photos_needed)
    else:
        records = INDEXERS[arguments.kind](data, arguments.classes)
    plan.check(records)
    root = data.parent if arguments.kind == "csv" else data  # the folder that photos' names start at
    with_llm = not arguments.no_chat and config.llm is not None
    settings = tables.fingerprint(config, with_llm) | {"--kind": arguments.kind, "--data": str(data.resolve())}
    settings["--reference-choice"] = plan.choice

    def build(process: Process) -> Measure:
        if process.is_main:  # it reads every mask
            print(*overview(records), "", sep="\n", file=sys.stderr)
        predictor = build_predictor(config, process, with_llm)
        rule = choose_mask_rule(arguments.kind, config.inference.geometry == "official")
        pictures = None if arguments.no_pictures else arguments.out
        return Evaluator(predictor, records, plan, root, rule, with_llm, arguments.batch_size, pictures).measure

    def state_of(one: ImageRecord) -> str:  # a cell is measured anew where it has changed
        return f"{photo_name(one, root)} {one.defect} {[path.stat().st_mtime for path in (one.image, *one.masks)]}"

    names = {cell: [*map(state_of, test_photos(records, cell.class_name))] for cell in plan.cells(records)}
    process, results = measure_cells(arguments.device, arguments.out, settings, names, build)
    if not results:
        return
    classes = sorted({cell.class_name for cell in names})
    facts = {
        **tables.facts_of(config, arguments.command, process, results),
        "references": str(plan),
        "data": f"{data} ({arguments.kind}), {len(classes)} classes",
        "maps and masks": sorted({result["maps"] for result in results}),
    }
    tables.publish(tables.report(facts, results, tables.official_dataset(arguments.kind, records)), arguments.out)
