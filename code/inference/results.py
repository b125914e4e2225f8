"""What inspecting and asking return: the result of a photo, and the answer to a question about it."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.findings import Findings, RegionFinding, Status
from anomalygpt.inference.answers import Verdict, means_anomalous
from anomalygpt.model.encoder import ImageFeatures

# The photo shows another part than the references; without any, one that the model does not know; or it is undecided.
Reason = Literal["", "other_part", "unknown_part", "near_threshold"]
AnswerSource = Literal["model", "corrected", "findings"]


@dataclass(frozen=True)
class ImageResult:
    """The result of one photo, which is encoded once for any number of questions."""

    features: ImageFeatures  # of the photo, one image
    model_map: torch.Tensor  # (1, 1, 224, 224) float32, the anomaly map
    map: NDArray[np.float32]  # (height, width), the same map on the photo's own pixels
    score: float  # the image score: the map's maximum, or the mean of its highest pixels (``top_share``)
    threshold: float  # a pixel above it is anomalous
    regions: tuple[RegionFinding, ...]  # largest first; none of a photo that is taken to be good, else at least one
    class_name: str  # what the photo shows
    probability: float  # that the photo is anomalous, calibrated by the references; above one half it is taken to be
    prompt_map: torch.Tensor  # (1, 1, 224, 224) float32, the map as the prompt learner gets it
    references: int = 0  # how many photos the map comes from; 0: from the text features
    score_threshold: float = 0.5  # the score at which the probability is one half
    reason: Reason = ""  # why there is no verdict; empty where there is one
    photo: Image.Image | None = None  # as it was given

    @property
    def is_anomalous(self) -> bool:
        """The verdict of the score."""
        return self.probability > 0.5

    @property
    def status(self) -> Status:
        """The verdict; ``can't tell`` where there is a reason against one."""
        return "can't tell" if self.reason else "defective" if self.is_anomalous else "good"

    @cached_property
    def findings(self) -> Findings:
        """What is known about the photo: badge, table, JSON, prompt and answers are made of it."""
        names = [field.name for field in fields(Findings) if field.name != "image_size"]
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        return Findings(**own, image_size=self.map.shape[::-1])


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
        numbers = {name: round(getattr(self.image, name), 6) for name in ("score", "threshold", "score_threshold")}
        probability = self.image.findings.shown_probability
        numbers["probability"] = None if probability is None else round(probability, 6)
        return own | self.image.findings.to_dict() | numbers


def prediction(image: ImageResult, question: str, answer: str, verdict: Verdict = "answer") -> Prediction:
    """A photo's result, the model's own answer and their verdict; ``verdict`` decides where they contradict."""
    by_answer, by_score = means_anomalous(question, answer), image.is_anomalous
    if by_answer is None or verdict == "score":
        return Prediction(image, question, answer, by_score, "score", by_answer in (None, by_score))
    return Prediction(image, question, answer, by_answer, "answer", by_answer == by_score)
