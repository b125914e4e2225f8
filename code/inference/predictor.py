"""The one path from a photo to an answer: demo, command line, evaluation and users call this class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.dialogue import class_in_prompt, detection_question, parse_verdict, position_name
from anomalygpt.datasets.transforms import Geometry, ImageTransform
from anomalygpt.inference.calibration import distance_threshold, taken_again
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.build import build_model, choose_device, generation_settings
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory
from anomalygpt.model.llm import GenerationSettings

SMALLEST_REGION = 0.0005  # of the photo's area; smaller ones are specks of the map's interpolation


@dataclass(frozen=True)
class Region:
    """A connected part of the map above the threshold.

    Attributes:
        box: (left, top, right, bottom) in the photo's pixels, right and bottom exclusive.
        area: share of the photo's area, 0..1.
        position: its place on a 3 x 3 grid, as answers name it.
        peak: the map's largest value in it.
    """

    box: tuple[int, int, int, int]
    area: float
    position: str
    peak: float


@dataclass(frozen=True)
class Look:
    """A photo that was looked at once, to be asked about often.

    Attributes:
        features: of the photo, one image.
        model_map: (1, 1, 224, 224) float32, what the prompt learner sees.
        map: (height, width) float32, the same map on the photo's own pixels.
        score: the map's maximum, the image's anomaly score.
        threshold: a pixel above it is anomalous.
        regions: the anomalous ones, largest first.
    """

    features: ImageFeatures
    model_map: torch.Tensor
    map: NDArray[np.float32]
    score: float
    threshold: float
    regions: tuple[Region, ...]
    class_name: str


@dataclass(frozen=True)
class Prediction:
    """What the model says of a photo.

    Attributes:
        answer: in words.
        is_anomalous: the verdict.
        verdict_from: whether the verdict is the answer's yes or no, or, where the answer has neither, the map's.
        answer_agrees: False where the answer's yes or no contradicts the map's regions.
        score: the map's maximum.
        map: (height, width) float32 on the photo's own pixels.
        threshold: a pixel of the map above it is anomalous.
    """

    question: str
    answer: str
    is_anomalous: bool
    verdict_from: Literal["answer", "map"]
    answer_agrees: bool
    score: float
    map: NDArray[np.float32]
    threshold: float
    regions: tuple[Region, ...]
    class_name: str


class Predictor:
    """Looks at photos, with or without good photos of the same part as references, and talks about them.

    Args:
        model: in evaluation mode.
        geometry, text_class_rule, map_threshold: see ``InferenceConfig``.
        generation: how answers are sampled.
    """

    def __init__(
        self,
        model: AnomalyGPT,
        *,
        geometry: Literal["squash", "official"] = "squash",
        text_class_rule: Literal["longest_word", "official"] = "longest_word",
        map_threshold: float = 0.5,
        generation: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.text_class_rule = text_class_rule
        self.map_threshold = map_threshold
        self.generation = generation or GenerationSettings()
        spec = model.encoder.spec
        self._whole = ImageTransform(spec.size, spec.mean, spec.std, "squash")
        # The released code crops wherever references are used, and squashes everywhere else (SPEC 2).
        referenced: Geometry = "crop" if geometry == "official" else "squash"
        self._beside_references = ImageTransform(spec.size, spec.mean, spec.std, referenced)
        self._memory: PatchMemory | None = None
        self._memory_threshold = 0.0

    @classmethod
    def from_config(cls, config: ExperimentConfig, device: str = "auto", *, speaks: bool = True) -> "Predictor":
        """Builds the model of an experiment and a predictor around it.

        Args:
            speaks: False leaves the language model out: maps, scores and regions only.
        """
        model = build_model(config, choose_device(device), speaks=speaks)
        return cls(model, generation=generation_settings(config), **config.inference.model_dump())

    @property
    def transform(self) -> ImageTransform:
        """How the next photo is brought to the model's size."""
        return self._whole if self._memory is None else self._beside_references

    @property
    def has_references(self) -> bool:
        """Whether maps come from reference photos."""
        return self._memory is not None

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        """Remembers good photos of the part; they replace earlier ones. None at all goes back to the text map."""
        if not photos:
            self._memory = None
            return
        images = torch.stack([self._beside_references(photo) for photo in photos])
        references = self.model.encode(images)
        shifted = self.model.encode(taken_again(images)) if len(photos) == 1 else references
        self._memory = PatchMemory(references)
        self._memory_threshold = distance_threshold(references, shifted)

    @torch.inference_mode()
    def look(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> Look:
        """Encodes a photo and draws its map; everything else about it is asked of the result.

        Args:
            photo: of any mode and size; its EXIF orientation is respected.
            class_name: what the photo shows, for encoders with a text tower.
        """
        features = self.model.encode(self.transform(photo).unsqueeze(0))
        model_map = self.model.anomaly_map(features, [class_name], self._memory)
        upright = ImageOps.exif_transpose(photo)
        on_photo = self.transform.to_photo(model_map[0, 0], upright.size).cpu().numpy()
        threshold = self.map_threshold if self._memory is None else self._memory_threshold
        return Look(
            features=features,
            model_map=model_map,
            map=on_photo,
            score=float(model_map.max()),
            threshold=threshold,
            regions=find_regions(on_photo, threshold),
            class_name=class_name,
        )

    def answer(self, look: Look, question: str, history: Sequence[tuple[str, str]] = ()) -> str:
        """Answers a question about a photo that was looked at.

        Args:
            history: earlier (question, answer) pairs about it.
        """
        text = chat_prompt(history, question)
        return self.model.answer(look.features, look.model_map, [text], self.generation)[0]

    def predict(self, photo: Image.Image, question: str | None = None, class_name: str | None = None) -> Prediction:
        """Looks at a photo and answers one question about it.

        Args:
            question: by default, whether there is an anomaly in it.
            class_name: what it shows; by default what the question names, else ``object``.
        """
        question = question or detection_question(class_name, with_description=False)
        found = class_name or class_in_prompt(question, self.text_class_rule)
        look = self.look(photo, found)
        answer = self.answer(look, question) if self.model.speaks else ""
        return prediction(look, question, answer)


def prediction(look: Look, question: str, answer: str) -> Prediction:
    """A look and an answer, with the verdict that follows from them."""
    said = parse_verdict(answer)
    return Prediction(
        question=question,
        answer=answer,
        is_anomalous=bool(look.regions) if said is None else said,
        verdict_from="map" if said is None else "answer",
        answer_agrees=said is None or said == bool(look.regions),
        score=look.score,
        map=look.map,
        threshold=look.threshold,
        regions=look.regions,
        class_name=look.class_name,
    )


def find_regions(anomaly_map: NDArray[np.float32], threshold: float) -> tuple[Region, ...]:
    """The connected parts of a map (height, width) above a threshold, largest first; specks are left out."""
    height, width = anomaly_map.shape
    labels, _ = ndimage.label(anomaly_map > threshold)
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        box = (columns.start, rows.start, columns.stop, rows.stop)
        regions.append(
            Region(
                box=box,
                area=float(inside.sum()) / (height * width),
                position=position_name(box, (width, height)),
                peak=float(anomaly_map[rows, columns][inside].max()),
            )
        )
    large = [region for region in regions if region.area >= SMALLEST_REGION]
    return tuple(sorted(large, key=lambda region: -region.area))
