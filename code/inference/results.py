"""What inspecting and asking return: the result of a photo, and the answer to a question about it."""

from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.findings import Findings, RegionFinding, Status, probability_text
from anomalygpt.datasets.records import MAP, OVERLAY
from anomalygpt.files import replacing, write_files
from anomalygpt.inference.answers import Verdict, means_anomalous
from anomalygpt.inference.visualize import overlay
from anomalygpt.model.encoder import ImageFeatures

# The photo shows another part than the references; without any, one that the model does not know; or it is undecided.
Reason = Literal["", "other_part", "unknown_part", "near_threshold"]
AnswerSource = Literal["model", "corrected", "findings"]


@dataclass(frozen=True, repr=False)
class ImageResult:
    """The result of one photo, which is encoded once for any number of questions."""

    features: ImageFeatures  # of the photo, one image
    model_map: torch.Tensor  # (1, 1, 224, 224) float32, the anomaly map
    photo: Image.Image  # upright
    map: NDArray[np.float32]  # (height, width), the same map on the photo's own pixels
    score: float  # the image score: the map's maximum, or the mean of its highest pixels (``top_share``)
    threshold: float  # a pixel above it is anomalous
    regions: tuple[RegionFinding, ...]  # largest first; none of a photo that is taken to be good, else at least one
    class_name: str  # what the photo shows
    score_probability: float  # that the photo is anomalous, by its score alone; above one half it is taken to be
    prompt_map: torch.Tensor  # (1, 1, 224, 224) float32, the map as the prompt learner gets it
    references: int = 0  # how many photos the map comes from; 0: from the text features
    score_threshold: float = 0.5  # the score at which the probability is one half
    reason: Reason = ""  # why there is no verdict; empty where there is one
    probability_without_odd: float | None = None  # without the references that are unlike the others, if there are any

    @property
    def probability(self) -> float | None:
        """Of a defect, 0..1; None of another part or an unknown one, where the score says nothing."""
        return self.findings.shown_probability

    @property
    def is_anomalous(self) -> bool:
        """The verdict of the score."""
        return self.score_probability > 0.5

    @property
    def status(self) -> Status:
        """The verdict; ``can't tell`` where there is a reason against one."""
        return "can't tell" if self.reason else "defective" if self.is_anomalous else "good"

    @cached_property
    def findings(self) -> Findings:
        """What is known about the photo: badge, table, JSON, prompt and answers are made of it."""
        size, about, other = self.map.shape[::-1], (self.class_name, self.references), self.probability_without_odd
        return Findings(self.status, self.score_probability, self.regions, *about, size, self.reason, other)

    def plot(self) -> Image.Image:
        """The photo with its map and numbered regions; a notebook shows it."""
        return overlay(self.photo, self.map, self.threshold, self.regions)

    def save_pictures(self, folder: Path, stem: str) -> dict[str, str]:
        """Writes overlay (PNG) and float map (TIFF), each atomically: "overlay" and "map" -> file name."""
        names = {"overlay": stem + OVERLAY, "map": stem + MAP}
        for name, picture in zip(names.values(), (self.plot(), Image.fromarray(self.map)), strict=True):
            with replacing(folder / name) as temporary:
                picture.save(temporary)
        return names

    def save(self, folder: str | PathLike[str], stem: str = "photo") -> None:
        """Writes STEM_overlay.png, STEM_map.tiff (32-bit float) and STEM.json into a folder."""
        self.save_pictures(Path(folder), stem)
        write_files(Path(folder), {f"{stem}.json": self.findings.to_dict()})

    def __repr__(self) -> str:
        return f"Result({self.status}, probability {probability_text(self.probability)}, {len(self.regions)} regions)"


@dataclass(frozen=True)
class Prediction:
    """A question about a photo, its answer, and the verdict."""

    image: ImageResult
    question: str
    answer: str  # empty without a language model
    is_anomalous: bool
    verdict_from: Verdict  # ``score`` where the answer has no yes or no, or where ``inference.verdict`` is ``score``
    answer_agrees: bool  # False where the language model's own verdict contradicts the score
    answer_source: AnswerSource = "model"  # whose words the answer is, see ``answer_check.Answer``

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: question, answer, verdict and findings; the map is left out."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "image"}
        numbers = {name: getattr(self.image, name) for name in ("score", "threshold", "score_threshold", "probability")}
        rounded = {name: None if value is None else round(value, 6) for name, value in numbers.items()}
        return own | self.image.findings.to_dict() | rounded


def prediction(image: ImageResult, question: str, answer: str, verdict: Verdict = "answer") -> Prediction:
    """A photo's result, the model's own answer and their verdict; ``verdict`` decides where they contradict."""
    by_answer, by_score = means_anomalous(question, answer), image.is_anomalous
    if by_answer is None or verdict == "score":
        return Prediction(image, question, answer, by_score, "score", by_answer in (None, by_score))
    return Prediction(image, question, answer, by_answer, "answer", by_answer == by_score)
