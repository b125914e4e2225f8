"""The one path from a photo to an answer: demo, command line, evaluation and users call this class."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomalygpt.config.schema import ExperimentConfig, InferenceConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.anomaly_map import text_maps, top_mean
from anomalygpt.inference.answers import (
    Verdict,
    class_in_prompt,
    contradicting_opening,
    means_anomalous,
    soundness_opening,
)
from anomalygpt.inference.calibration import Calibration, TextCalibration, calibrate
from anomalygpt.inference.references import References
from anomalygpt.inference.regions import Region, find_regions
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.build import build_model, choose_device
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import calibrate_map


@dataclass(frozen=True)
class ImageResult:
    """The result of one photo, which is encoded once for any number of questions."""

    features: ImageFeatures  # of the photo, one image
    model_map: torch.Tensor  # (1, 1, 224, 224) float32, the anomaly map
    map: NDArray[np.float32]  # (height, width), the same map on the photo's own pixels
    score: float  # the image score: the map's maximum, or the mean of its highest pixels (``top_share``)
    threshold: float  # a pixel above it is anomalous
    regions: tuple[Region, ...]  # the anomalous ones, largest first
    class_name: str  # what the photo shows
    probability: float  # that the photo is anomalous, calibrated by the references; above one half it is taken to be
    prompt_map: torch.Tensor  # (1, 1, 224, 224) float32, the map as the prompt learner gets it

    @property
    def is_anomalous(self) -> bool:
        """The verdict of the score."""
        return self.probability > 0.5

    @property
    def place(self) -> str | None:
        """The position of the largest region, as answers name it; None without any."""
        return self.regions[0].position if self.regions else None


@dataclass(frozen=True)
class Prediction:
    """A question about a photo, its answer, and the verdict."""

    image: ImageResult
    question: str
    answer: str  # in words; empty without a language model
    is_anomalous: bool  # the verdict
    verdict_from: Verdict  # ``score`` where the answer has no yes or no, or where ``inference.verdict`` is ``score``
    answer_agrees: bool  # False where the language model's own yes or no contradicts the score

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; the map is left out."""
        image = self.image
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "image"}
        numbers = {name: round(getattr(image, name), 6) for name in ("probability", "score", "threshold")}
        return own | numbers | {"class_name": image.class_name, "regions": [asdict(region) for region in image.regions]}


class Predictor:
    """Anomaly maps, verdicts and answers of a model in evaluation mode, with or without reference photos."""

    def __init__(
        self, model: AnomalyGPT, settings: InferenceConfig | None = None, generation: GenerationSettings | None = None
    ) -> None:
        self.model = model
        self.settings = settings or InferenceConfig()
        self.generation = generation or GenerationSettings()
        spec = model.encoder.spec
        self._without_references = ImageTransform(spec.size, spec.mean, spec.std, "squash")
        # The released demo crops wherever references are used, and squashes everywhere else (specification 2).
        official = self.settings.geometry == "official"
        self._with_references = ImageTransform(spec.size, spec.mean, spec.std, "crop" if official else "squash")
        self.references: References | None = None  # the photos that maps are computed from
        self._calibrations: dict[str, Calibration] = {}  # by class name

    @classmethod
    def from_config(cls, config: ExperimentConfig, device: str = "auto", *, with_llm: bool = True) -> "Predictor":
        """Builds an experiment's model and a predictor around it; without a language model if not ``with_llm``."""
        return cls.around(build_model(config, choose_device(device), with_llm=with_llm, merge_lora=True), config)

    @classmethod
    def around(cls, model: AnomalyGPT, config: ExperimentConfig) -> "Predictor":
        """A predictor without references around an existing model, with an experiment's settings."""
        return cls(model, config.inference, config.llm.generation if config.llm else None)

    @property
    def transform(self) -> ImageTransform:
        """How the next photo is brought to the encoder's size."""
        return self._without_references if self.references is None else self._with_references

    def use_evaluation_geometry(self) -> None:
        """Makes ``geometry: official`` crop photos without references too: as the paper evaluates (specification 2)."""
        self._without_references = self._with_references

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        """Replaces the references by these photos of good parts; without any, maps come from text features.

        Raises:
            UserError: the settings of ``inference.references`` do not fit the encoder.
        """
        made = References(self.model, self.settings.references, self._with_references, photos) if photos else None
        self._use(made)

    def add_references(self, photos: Sequence[Image.Image]) -> None:
        """Adds photos of good parts to the references."""
        if self.references is None:
            self.set_references(photos)
        elif photos:
            for photo in photos:
                self.references.add(photo)
            self._use(self.references)

    def save_references(self, path: Path) -> None:
        """Writes the references to a safetensors file, from which :meth:`load_references` restores them.

        Raises:
            UserError: there are none, or the file can't be written.
        """
        if self.references is None:
            raise UserError(f"{path}: there are no references to save")
        self.references.save(path)

    def load_references(self, path: Path) -> None:
        """Takes saved references in place of any earlier ones, with the settings that they were saved with.

        Raises:
            UserError: no such file, damaged, or made with another encoder, other weights or another geometry.
        """
        self._use(References.load(path, self.model, self._with_references))

    def _use(self, references: References | None) -> None:
        self.references, self._calibrations = references, {}
        self._calibrated(UNNAMED_CLASS)  # now, so that the first photo does not wait for it

    def _calibrated(self, class_name: str) -> Calibration | TextCalibration:
        references = self.references
        if references is None:
            return TextCalibration(self.settings.map_threshold)
        key = references.calibration_class(class_name)
        if key not in self._calibrations:
            maps = references.held_out_maps(key)
            prior_score = self.settings.prior_score
            # A trusted text map is near zero on a good photo, so that the blend shrinks by its weight.
            own_weight = 1 - references.text_weight(key)
            comparable = own_weight and references.settings.options == self.settings.references.options
            self._calibrations[key] = calibrate(
                [float(top_mean(one, references.settings.top_share)) for one in maps.split(1)],
                maps,
                self.settings.false_alarm_rate,
                references=len(references),
                prior_score=prior_score * own_weight if prior_score and comparable else None,
            )
        return self._calibrations[key]

    def inspect(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> ImageResult:
        """Encodes a photo of any mode and size, and computes its map; its EXIF orientation is respected."""
        return self.inspect_batch([photo], class_name)[0]

    @torch.inference_mode()
    def inspect_batch(self, photos: Sequence[Image.Image], class_name: str = UNNAMED_CLASS) -> list[ImageResult]:
        """The results of several photos of one kind of part at once: faster on a GPU, no slower on a CPU."""
        names = [class_name] * len(photos)
        if self.references is not None:
            features, maps = self.references.anomaly_maps(photos, names)
        else:
            features, maps = text_maps(self.model, photos, names, self.transform, self.settings.text_scales)
        return [self._result(each, features[[i]], maps[i : i + 1], class_name) for i, each in enumerate(photos)]

    def _result(
        self, photo: Image.Image, features: ImageFeatures, model_map: torch.Tensor, class_name: str
    ) -> ImageResult:
        size = ImageOps.exif_transpose(photo).size
        on_photo = self.transform.to_photo(model_map[0, 0], size).cpu().numpy()
        calibration = self._calibrated(class_name)
        used = self.settings.references if self.references is None else self.references.settings
        score = float(top_mean(model_map, used.top_share))
        rescaled = self.settings.prompt_map == "calibrated" and self.references is not None
        return ImageResult(
            features=features,
            model_map=model_map,
            map=on_photo,
            score=score,
            threshold=calibration.threshold,
            regions=find_regions(on_photo, calibration.threshold),
            class_name=class_name,
            probability=calibration.probability(score),
            prompt_map=calibrate_map(model_map, calibration.threshold) if rescaled else model_map,
        )

    def answer(
        self, image: ImageResult, question: str, history: Sequence[tuple[str, str]] = (), opening: str | None = None
    ) -> str:
        """Answers a question about a photo.

        Args:
            history: earlier (question, answer) pairs about it.
            opening: the answer's first words, from which the model goes on.
        """
        prompts, openings = [chat_prompt(history, question)], [] if opening is None else [opening]
        return self.model.answer(image.features, image.prompt_map, prompts, self.generation, openings)[0]

    def ask(self, image: ImageResult, question: str, history: Sequence[tuple[str, str]] = ()) -> Prediction:
        """Asks about a photo, with a verdict.

        With ``inference.verdict: score``, an answer that contradicts the score or names another position than that of
        the largest region is generated again, beginning with the score's verdict; ``answer_agrees`` still refers to the
        first answer. An answer to ``Is it fine?`` begins with the score's verdict at once.
        """
        if not self.model.has_llm:
            return prediction(image, question, "", self.settings.verdict)
        if self.settings.verdict == "answer":
            return prediction(image, question, self.answer(image, question, history))
        required = soundness_opening(question, image.is_anomalous, image.place)
        answer = self.answer(image, question, history, required)
        result = prediction(image, question, answer, "score")
        opening = None if required else contradicting_opening(question, answer, image.is_anomalous, image.place)
        return result if opening is None else replace(result, answer=self.answer(image, question, history, opening))

    def predict(self, photo: Image.Image, question: str | None = None, class_name: str | None = None) -> Prediction:
        """The map of a photo and the answer to one question about it.

        Args:
            question: by default, whether there is an anomaly in it.
            class_name: what it shows; by default what the question names, else ``object``.
        """
        question = question or detection_question(class_name, with_description=False)
        named = class_name or class_in_prompt(question, self.settings.text_class_rule)
        return self.ask(self.inspect(photo, named), question)


def prediction(image: ImageResult, question: str, answer: str, verdict: Verdict = "answer") -> Prediction:
    """A photo's result, the model's own answer and their verdict; ``verdict`` decides where they contradict."""
    by_answer, by_score = means_anomalous(question, answer), image.is_anomalous
    if by_answer is None or verdict == "score":
        return Prediction(image, question, answer, by_score, "score", by_answer in (None, by_score))
    return Prediction(image, question, answer, by_answer, "answer", by_answer == by_score)
