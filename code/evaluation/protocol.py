"""How a class is measured: zero-shot, or against K good photos, on the one path that users take (section 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.dialogue import detection_question, parse_verdict
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.transforms import (
    MVTEC_THRESHOLD,
    ImageTransform,
    load_image,
    load_mask,
    official_mvtec_mask,
)
from anomalygpt.errors import UserError
from anomalygpt.evaluation.metrics import answer_accuracy, image_auroc, pixel_auroc
from anomalygpt.inference.predictor import Predictor, prediction

PAPER_SHOTS = 4  # the paper draws 1, 2 or 4 references, and starts each round four photos further on

MaskRule = Literal["official", "as_seen"]
MASK_RULES: dict[MaskRule, str] = {
    "official": f"whole mask squashed to the map's size, bilinear, > {MVTEC_THRESHOLD} (the paper's rule for MVTec-AD)",
    "as_seen": f"mask resized and cropped as its photo was, bilinear, > {MVTEC_THRESHOLD}",
}


class ProtocolError(UserError, ValueError):
    """The photos do not allow the measurement that was asked for."""


@dataclass(frozen=True)
class PhotoResult:
    """One test photo.

    Attributes:
        photo: its folder and file name, as in ``crack/000.png``.
        score: the map's maximum.
        answer: in words; empty without a language model.
        said: what the answer says; None where it says neither yes nor no, or there is none.
        verdict: what the user is told: the answer's yes or no, else whether the map has an anomalous region.
    """

    photo: str
    is_anomalous: bool
    score: float
    answer: str
    said: bool | None
    verdict: bool


@dataclass(frozen=True)
class CategoryResult:
    """One class. Numbers are 0..1, and None where they are not defined or were not measured.

    Attributes:
        references: the good photos that the maps were drawn against, none for zero-shot.
        pixel_auroc: over all pixels of the photos that are good or have a mask (``masked_photos`` of them).
        answer_accuracy: an answer without a yes or no is wrong (``no_verdict`` of them).
        verdict_accuracy: of what the user is told; such an answer leaves the verdict to the map.
    """

    class_name: str
    shots: int
    references: tuple[str, ...]
    question: str
    photos: tuple[PhotoResult, ...]
    image_auroc: float | None
    pixel_auroc: float | None
    masked_photos: int
    answer_accuracy: float | None
    no_verdict: int
    verdict_accuracy: float | None


def reference_records(records: Sequence[ImageRecord], shots: int, round: int = 0) -> list[ImageRecord]:
    """The K good training photos of a round: numbers ``4 * round + k`` of the list sorted by path, k < K.

    With more than four shots a round takes K photos on, so that rounds never share one.

    Args:
        records: of one class.
        shots: K; 0 takes none.

    Raises:
        ProtocolError: there are too few good training photos.
    """
    good = sorted((r for r in records if r.split == "train" and not r.is_anomalous), key=lambda r: r.image)
    start = max(PAPER_SHOTS, shots) * round
    if shots and start + shots > len(good):
        name = records[0].class_name if records else "this class"
        raise ProtocolError(
            f"{name}: {shots} references in round {round} need {start + shots} good training photos, "
            f"there are {len(good)}"
        )
    return good[start : start + shots]


def evaluate_category(
    predictor: Predictor,
    records: Sequence[ImageRecord],
    shots: int,
    class_name: str,
    *,
    round: int = 0,
    chat: bool = True,
    mask_rule: MaskRule = "as_seen",
    on_photo: Callable[[], object] = lambda: None,
) -> CategoryResult:
    """Measures one class; the predictor keeps the references afterwards.

    Each photo is looked at, and asked about, as ``Predictor.predict`` does by default for a named class. Maps are
    measured at the size of ``Look.model_map`` (224 x 224); they and the masks stay in memory, 5 bytes a pixel.

    Args:
        records: of any number of classes; those of ``class_name`` count.
        shots: how many reference photos; 0 measures the text map.
        round: which references, see :func:`reference_records`.
        chat: False measures maps only.
        on_photo: called after each photo.

    Raises:
        ProtocolError: there is no test photo, or too few references.
        DatasetError: a photo or a mask can't be read.
    """
    own, tested = _of_class(records, class_name)
    references = reference_records(own, shots, round)
    predictor.set_references([load_image(record.image) for record in references])
    question = detection_question(class_name, with_description=False)
    photos: list[PhotoResult] = []
    pixels: list[tuple[NDArray[np.float32], NDArray[np.bool_]]] = []
    for record in tested:
        photo, seen = _look(predictor, record, question, chat)
        photos.append(photo)
        if not record.is_anomalous or record.mask:
            pixels.append((seen, _mask(record, predictor.transform, seen.shape[-1], mask_rule)))
        on_photo()
    names = tuple(_short_name(record) for record in references)
    return _summary(class_name, names, question, photos, pixels, chat)


def _of_class(records: Sequence[ImageRecord], class_name: str) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """All photos of a class, and those to test on."""
    own = [record for record in records if record.class_name == class_name]
    tested = [record for record in own if record.split == "test"]
    if not tested:
        raise ProtocolError(f"{class_name}: no test photos")
    return own, tested


def map_mask(mask: Image.Image, transform: ImageTransform, side: int, rule: MaskRule) -> NDArray[np.bool_]:
    """A mask of any size on the map's pixels.

    Args:
        transform: how its photo was brought to the model.
        side: of the map, in pixels.

    Returns:
        (side, side) bool.
    """
    if rule == "official":
        return official_mvtec_mask(mask, side)[0].numpy()
    at_map_size = ImageTransform(side, transform.mean, transform.std, transform.geometry)
    return (at_map_size.mask(mask)[0] > MVTEC_THRESHOLD).numpy()


def _look(
    predictor: Predictor, record: ImageRecord, question: str, chat: bool
) -> tuple[PhotoResult, NDArray[np.float32]]:
    look = predictor.look(load_image(record.image), record.class_name)
    answer = predictor.answer(look, question) if chat else ""
    found = PhotoResult(
        photo=_short_name(record),
        is_anomalous=record.is_anomalous,
        score=look.score,
        answer=answer,
        said=parse_verdict(answer),
        verdict=prediction(look, question, answer).is_anomalous,
    )
    return found, look.model_map[0, 0].to("cpu", torch.float32).numpy()


def _mask(record: ImageRecord, transform: ImageTransform, side: int, rule: MaskRule) -> NDArray[np.bool_]:
    if record.mask is None:
        return np.zeros((side, side), dtype=bool)
    return map_mask(load_mask(record.mask), transform, side, rule)


def _short_name(record: ImageRecord) -> str:
    return f"{record.image.parent.name}/{record.image.name}"


def _summary(
    class_name: str,
    references: tuple[str, ...],
    question: str,
    photos: Sequence[PhotoResult],
    pixels: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]],
    chat: bool,
) -> CategoryResult:
    maps, masks = [seen for seen, _ in pixels], [mask for _, mask in pixels]
    truth = [photo.is_anomalous for photo in photos]
    said = [photo.said for photo in photos]
    return CategoryResult(
        class_name=class_name,
        shots=len(references),
        references=references,
        question=question,
        photos=tuple(photos),
        image_auroc=image_auroc([photo.score for photo in photos], truth),
        pixel_auroc=pixel_auroc(np.stack(maps), np.stack(masks)) if maps else None,
        masked_photos=len(maps),
        answer_accuracy=answer_accuracy(said, truth) if chat else None,
        no_verdict=said.count(None) if chat else 0,
        verdict_accuracy=answer_accuracy([photo.verdict for photo in photos], truth),
    )
