"""The one path from a photo to an answer: demo, command line, evaluation and users call this class."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
    decide,
    says_anomalous,
    soundness_opening,
)
from anomalygpt.inference.calibration import Calibration, TextCalibration, calibrate
from anomalygpt.inference.references import References
from anomalygpt.inference.regions import Region, find_regions
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.build import build_model, choose_device
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.map_calibration import calibrate_map


@dataclass(frozen=True)
class ImageResult:
    """The result of one photo: encoded once, to be asked about often.

    Attributes:
        features: of the photo, one image.
        model_map: (1, 1, 224, 224) float32, the anomaly map.
        map: (height, width) float32, the same map on the photo's own pixels.
        score: the image score: the map's maximum, or the mean of its highest pixels (``top_share``).
        threshold: a pixel above it is anomalous.
        regions: the anomalous ones, largest first.
        class_name: what the photo shows.
        probability: that the photo is anomalous, calibrated by the references; above one half it is taken to be.
        prompt_map: (1, 1, 224, 224) float32, the map as the prompt learner gets it.
    """

    features: ImageFeatures
    model_map: torch.Tensor
    map: NDArray[np.float32]
    score: float
    threshold: float
    regions: tuple[Region, ...]
    class_name: str
    probability: float
    prompt_map: torch.Tensor

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
    """A question about a photo, its answer, and the verdict.

    Attributes:
        image: the result of the photo.
        answer: in words; empty without a language model.
        is_anomalous: the verdict.
        verdict_from: whether the verdict is the answer's yes or no, or the calibrated score's: where the answer has
            neither, or where the score wins.
        answer_agrees: False where the language model's own yes or no contradicts the score.
    """

    image: ImageResult
    question: str
    answer: str
    is_anomalous: bool
    verdict_from: Verdict
    answer_agrees: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; the map is left out."""
        return {
            "question": self.question,
            "answer": self.answer,
            "is_anomalous": self.is_anomalous,
            "verdict_from": self.verdict_from,
            "answer_agrees": self.answer_agrees,
            "probability": round(self.image.probability, 6),
            "score": round(self.image.score, 6),
            "threshold": round(self.image.threshold, 6),
            "class_name": self.image.class_name,
            "regions": [asdict(region) for region in self.image.regions],
        }


class Predictor:
    """Anomaly maps, verdicts and answers, with or without good photos of the same part as references.

    Args:
        model: in evaluation mode.
        settings: how photos are compared, scored and answered about.
        generation: how answers are sampled.
    """

    def __init__(
        self,
        model: AnomalyGPT,
        settings: InferenceConfig | None = None,
        generation: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or InferenceConfig()
        self.generation = generation or GenerationSettings()
        spec = model.encoder.spec
        self._without_references = ImageTransform(spec.size, spec.mean, spec.std, "squash")
        # The released demo crops wherever references are used, and squashes everywhere else (specification 2).
        official = self.settings.geometry == "official"
        self._with_references = ImageTransform(spec.size, spec.mean, spec.std, "crop" if official else "squash")
        self._references: References | None = None
        self._calibrations: dict[str, Calibration] = {}  # by class name

    @classmethod
    def from_config(cls, config: ExperimentConfig, device: str = "auto", *, with_llm: bool = True) -> "Predictor":
        """Builds the model of an experiment and a predictor around it.

        Args:
            with_llm: False leaves the language model out: maps, scores and regions only.
        """
        return cls.around(build_model(config, choose_device(device), with_llm=with_llm, merge_lora=True), config)

    @classmethod
    def around(cls, model: AnomalyGPT, config: ExperimentConfig) -> "Predictor":
        """A predictor without references around an existing model, with an experiment's settings."""
        return cls(model, config.inference, config.llm.generation if config.llm else None)

    @property
    def transform(self) -> ImageTransform:
        """How the next photo is brought to the encoder's size."""
        return self._without_references if self._references is None else self._with_references

    def use_evaluation_geometry(self) -> None:
        """Takes the geometry of the paper's evaluation, without references too (specification 2).

        ``geometry: official`` crops there; in the released demo it squashes photos that have no references.
        """
        self._without_references = self._with_references

    # -- references -------------------------------------------------------------------------------------------------

    @property
    def references(self) -> References | None:
        """The good photos that maps come from; None without any."""
        return self._references

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        """Remembers good photos of the part in place of earlier ones. No photo goes back to the text map.

        Raises:
            UserError: the settings of ``inference.references`` do not fit the encoder.
        """
        settings, transform = self.settings.references, self._with_references
        self._use(References(self.model, settings, transform, photos) if photos else None)

    def add_references(self, photos: Sequence[Image.Image]) -> None:
        """Remembers more good photos, beside those that are remembered."""
        if self._references is None:
            self.set_references(photos)
            return
        for photo in photos:
            self._references.add(photo)
        if photos:
            self._use(self._references)

    def save_references(self, path: Path) -> None:
        """Writes the references to a safetensors file, from which :meth:`load_references` restores them.

        Raises:
            UserError: there are none, or the file can't be written.
        """
        if self._references is None:
            raise UserError(f"{path}: there are no references to save")
        self._references.save(path)

    def load_references(self, path: Path) -> None:
        """Takes saved references in place of any earlier ones, with the settings that they were saved with.

        Raises:
            UserError: no such file, damaged, or made with another encoder, other weights or another geometry.
        """
        self._use(References.load(path, self.model, self._with_references))

    def _use(self, references: References | None) -> None:
        self._references, self._calibrations = references, {}
        self._calibrated(UNNAMED_CLASS)  # now, so that the first photo does not wait for it

    def _calibrated(self, class_name: str) -> Calibration | TextCalibration:
        references = self._references
        if references is None:
            return TextCalibration(self.settings.map_threshold)
        key = references.calibration_class(class_name)
        if key not in self._calibrations:
            maps = references.held_out_maps(key)
            prior_score = self.settings.prior_score
            # A trusted text map is near zero on a good photo, so that the blend shrinks by its weight.
            own_share = 1 - references.text_weight(key)
            same_settings = references.settings.options == self.settings.references.options
            self._calibrations[key] = calibrate(
                [references.score(one) for one in maps.split(1)],
                maps,
                self.settings.false_alarm_rate,
                references=len(references),
                prior_score=prior_score * own_share if prior_score and own_share and same_settings else None,
            )
        return self._calibrations[key]

    # -- maps -------------------------------------------------------------------------------------------------------

    def inspect(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> ImageResult:
        """Encodes a photo and computes its map; the language model is asked about the result.

        Args:
            photo: of any mode and size; its EXIF orientation is respected.
            class_name: what the photo shows, for encoders with a text tower.
        """
        return self.inspect_batch([photo], class_name)[0]

    @torch.inference_mode()
    def inspect_batch(self, photos: Sequence[Image.Image], class_name: str = UNNAMED_CLASS) -> list[ImageResult]:
        """The results of several photos of one kind of part at once: quicker on a GPU, the same on a CPU."""
        names = [class_name] * len(photos)
        if self._references is not None:
            features, maps = self._references.anomaly_maps(photos, names)
        else:
            features, maps = text_maps(self.model, photos, names, self.transform, self.settings.text_scales)
        return [
            self._result(photo, features[[number]], maps[number : number + 1], class_name)
            for number, photo in enumerate(photos)
        ]

    def _result(
        self, photo: Image.Image, features: ImageFeatures, model_map: torch.Tensor, class_name: str
    ) -> ImageResult:
        size = ImageOps.exif_transpose(photo).size
        on_photo = self.transform.to_photo(model_map[0, 0], size).cpu().numpy()
        calibration = self._calibrated(class_name)
        used = self.settings.references if self._references is None else self._references.settings
        score = float(top_mean(model_map, used.top_share))
        rescaled = self.settings.prompt_map == "calibrated" and self._references is not None
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

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer(
        self, image: ImageResult, question: str, history: Sequence[tuple[str, str]] = (), opening: str | None = None
    ) -> str:
        """Answers a question about a photo.

        Args:
            history: earlier (question, answer) pairs about it.
            opening: the answer's first words, from which the model goes on.
        """
        text = chat_prompt(history, question)
        openings = [] if opening is None else [opening]
        return self.model.answer(image.features, image.prompt_map, [text], self.generation, openings)[0]

    def ask(self, image: ImageResult, question: str, history: Sequence[tuple[str, str]] = ()) -> Prediction:
        """Asks about a photo, with a verdict.

        Where the score wins over an answer that contradicts it or names another position than that of the largest
        region, the answer is generated again, beginning with the verdict of the score; ``answer_agrees`` still says
        whether the language model itself contradicted it. The answer to whether all is well begins so at once.
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
    """The verdict that follows from a photo's result and the language model's own answer.

    Args:
        verdict: which wins where they contradict each other.
    """
    said = says_anomalous(question, answer)
    is_anomalous, source = decide(said, image.is_anomalous, verdict)
    return Prediction(image, question, answer, is_anomalous, source, said is None or said == image.is_anomalous)
