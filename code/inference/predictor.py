"""The one path from a photo to an answer: demo, command line, evaluation and users call this class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.regions import label_regions, position_name
from anomalygpt.datasets.transforms import Geometry, ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.answers import (
    Verdict,
    class_in_prompt,
    contradicting_opening,
    decide,
    says_anomalous,
    soundness_opening,
)
from anomalygpt.inference.calibration import Calibrated, Calibration, TextCalibration, calibrate
from anomalygpt.inference.comparison import top_mean
from anomalygpt.inference.reference_settings import OFFICIAL, ReferenceSettings, reference_settings
from anomalygpt.inference.references import References
from anomalygpt.inference.text_map import text_maps
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.build import build_model, choose_device
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.map_scale import calibrated

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
        model_map: (1, 1, 224, 224) float32, the anomaly map.
        map: (height, width) float32, the same map on the photo's own pixels.
        score: the image's anomaly score: the map's maximum, or the mean of its highest pixels (``top_share``).
        threshold: a pixel above it is anomalous.
        regions: the anomalous ones, largest first.
        probability: that the photo is anomalous, calibrated by the references; above one half it is taken to be.
        prompt_map: (1, 1, 224, 224) float32, what the prompt learner sees of the map.
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
        """What the score says."""
        return self.probability > 0.5

    @property
    def place(self) -> str | None:
        """Where the largest region is, as answers name it; None without any."""
        return self.regions[0].position if self.regions else None


@dataclass(frozen=True)
class Prediction:
    """What the model says of a photo.

    Attributes:
        answer: in words.
        is_anomalous: the verdict.
        verdict_from: whether the verdict is the answer's yes or no, or the calibrated score's: where the answer has
            neither, or where the score wins.
        answer_agrees: False where the language model's own yes or no contradicts the score.
        score: the map's maximum, or the mean of its highest pixels.
        map: (height, width) float32 on the photo's own pixels.
        threshold: a pixel of the map above it is anomalous.
        probability: that the photo is anomalous, by the score.
    """

    question: str
    answer: str
    is_anomalous: bool
    verdict_from: Verdict
    answer_agrees: bool
    score: float
    map: NDArray[np.float32]
    threshold: float
    regions: tuple[Region, ...]
    class_name: str
    probability: float


class Predictor:
    """Looks at photos, with or without good photos of the same part as references, and talks about them.

    Args:
        model: in evaluation mode.
        geometry, text_class_rule, text_scales, map_threshold, false_alarm_rate, usual_score, verdict, prompt_map: see
            ``InferenceConfig``.
        references: how good photos are remembered.
        generation: how answers are sampled.
    """

    def __init__(
        self,
        model: AnomalyGPT,
        *,
        geometry: Literal["squash", "official"] = "squash",
        text_class_rule: Literal["longest_word", "official"] = "longest_word",
        text_scales: Sequence[int] = (1,),
        map_threshold: float = 0.5,
        references: ReferenceSettings = OFFICIAL,
        false_alarm_rate: float = 0.05,
        usual_score: float | None = None,
        verdict: Verdict = "answer",
        prompt_map: Literal["raw", "calibrated"] = "raw",
        generation: GenerationSettings | None = None,
    ) -> None:
        self.model = model
        self.text_class_rule = text_class_rule
        self.text_scales = text_scales
        self.map_threshold = map_threshold
        self.reference_settings = references
        self.false_alarm_rate = false_alarm_rate
        self.usual_score = usual_score
        self.verdict = verdict
        self.prompt_map = prompt_map
        self.generation = generation or GenerationSettings()
        spec = model.encoder.spec
        self._whole = ImageTransform(spec.size, spec.mean, spec.std, "squash")
        # The released demo crops wherever references are used, and squashes everywhere else (specification 2).
        referenced: Geometry = "crop" if geometry == "official" else "squash"
        self._beside_references = ImageTransform(spec.size, spec.mean, spec.std, referenced)
        self._references: References | None = None
        self._calibrations: dict[str, Calibration] = {}  # by class name

    @classmethod
    def from_config(cls, config: ExperimentConfig, device: str = "auto", *, speaks: bool = True) -> "Predictor":
        """Builds the model of an experiment and a predictor around it.

        Args:
            speaks: False leaves the language model out: maps, scores and regions only.
        """
        return cls.around(build_model(config, choose_device(device), speaks=speaks, folds_lora=True), config)

    @classmethod
    def around(cls, model: AnomalyGPT, config: ExperimentConfig) -> "Predictor":
        """A predictor around a model that was built before, with an experiment's settings; it has no references yet."""
        settings = config.inference.model_dump(exclude={"references"})
        remembered = reference_settings(config.inference.references)
        return cls(model, generation=config.llm.generation if config.llm else None, references=remembered, **settings)

    @property
    def transform(self) -> ImageTransform:
        """How the next photo is brought to the model's size."""
        return self._whole if self._references is None else self._beside_references

    def look_as_evaluated(self) -> None:
        """Brings photos to the model as the paper's evaluation does, without references too (specification 2).

        ``geometry: official`` crops there; in the released demo it squashes photos that have no references.
        """
        self._whole = self._beside_references

    # -- references -------------------------------------------------------------------------------------------------

    @property
    def references(self) -> References | None:
        """The good photos that maps come from; None without any."""
        return self._references

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        """Remembers good photos of the part; they replace earlier ones. None at all goes back to the text map.

        Raises:
            UserError: the settings of ``inference.references`` do not fit the encoder.
        """
        self._take(
            References.remember(self.model, photos, self.reference_settings, self._beside_references)
            if photos
            else None
        )

    def add_references(self, photos: Sequence[Image.Image]) -> None:
        """Remembers more good photos, beside those that are remembered."""
        if self._references is None:
            self.set_references(photos)
            return
        for photo in photos:
            self._references.add(photo)
        if photos:
            self._take(self._references)

    def save_references(self, path: Path) -> None:
        """Writes the references to a safetensors file, from which :meth:`load_references` restores them.

        Raises:
            UserError: there are none, or the file can't be written.
        """
        if self._references is None:
            raise UserError(f"{path}: there are no references to save")
        self._references.save(path)

    def load_references(self, path: Path) -> None:
        """Takes saved references in place of any earlier ones; they are compared as they were when they were saved.

        Raises:
            UserError: no such file, damaged, or made with another encoder, other weights or another geometry.
        """
        self._take(References.load(path, self.model, self._beside_references))

    def _take(self, references: References | None) -> None:
        self._calibrations = {}
        if references is not None:  # now, so that the first photo does not wait for it
            self._calibrations[UNNAMED_CLASS] = self._calibration(references, UNNAMED_CLASS)
        self._references = references

    def _calibrated(self, class_name: str) -> Calibrated:
        if self._references is None:
            return TextCalibration(self.map_threshold)
        key = self._references.calibration_class(class_name)
        if key not in self._calibrations:
            self._calibrations[key] = self._calibration(self._references, key)
        return self._calibrations[key]

    def _calibration(self, references: References, class_name: str) -> Calibration:
        maps = references.held_out_maps(class_name)
        scores = [references.score(one) for one in maps.split(1)]
        return calibrate(
            scores,
            maps,
            self.false_alarm_rate,
            references=len(references),
            usual_score=self._usual_score(references, class_name),
        )

    def _usual_score(self, references: References, class_name: str) -> float | None:
        """``usual_score`` on the scale of these references' maps; None where they are compared in another way."""
        # A trusted text map says next to nothing of a good photo, so that the blend shrinks by its weight.
        own = 1 - references.text_weight(class_name)
        if self.usual_score is None or own == 0 or references.settings != self.reference_settings:
            return None
        return self.usual_score * own

    # -- looking ----------------------------------------------------------------------------------------------------

    def look(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> Look:
        """Encodes a photo and draws its map; everything else about it is asked of the result.

        Args:
            photo: of any mode and size; its EXIF orientation is respected.
            class_name: what the photo shows, for encoders with a text tower.
        """
        return self.look_many([photo], class_name)[0]

    @torch.inference_mode()
    def look_many(self, photos: Sequence[Image.Image], class_name: str = UNNAMED_CLASS) -> list[Look]:
        """Looks at several photos of one kind of part at once: quicker on a GPU, the same on a CPU."""
        names = [class_name] * len(photos)
        if self._references is not None:
            features, maps = self._references.look_many(photos, names)
        else:
            features, maps = text_maps(self.model, photos, names, self.transform, self.text_scales)
        return [
            self._seen(photo, features[[number]], maps[number : number + 1], class_name)
            for number, photo in enumerate(photos)
        ]

    def _seen(self, photo: Image.Image, features: ImageFeatures, model_map: torch.Tensor, class_name: str) -> Look:
        size = ImageOps.exif_transpose(photo).size
        on_photo = self.transform.to_photo(model_map[0, 0], size).cpu().numpy()
        calibration = self._calibrated(class_name)
        score = float(top_mean(model_map, self._settings.top_share))
        rescaled = self.prompt_map == "calibrated" and self._references is not None
        return Look(
            features=features,
            model_map=model_map,
            map=on_photo,
            score=score,
            threshold=calibration.threshold,
            regions=find_regions(on_photo, calibration.threshold),
            class_name=class_name,
            probability=calibration.probability(score),
            prompt_map=calibrated(model_map, calibration.threshold) if rescaled else model_map,
        )

    @property
    def _settings(self) -> ReferenceSettings:
        return self.reference_settings if self._references is None else self._references.settings

    # -- answering --------------------------------------------------------------------------------------------------

    def answer(
        self, look: Look, question: str, history: Sequence[tuple[str, str]] = (), opening: str | None = None
    ) -> str:
        """Answers a question about a photo that was looked at.

        Args:
            history: earlier (question, answer) pairs about it.
            opening: the answer's first words, from which the model goes on.
        """
        text = chat_prompt(history, question)
        openings = [] if opening is None else [opening]
        return self.model.answer(look.features, look.prompt_map, [text], self.generation, openings)[0]

    def ask(self, look: Look, question: str, history: Sequence[tuple[str, str]] = ()) -> Prediction:
        """Asks for a verdict on a photo that was looked at.

        Where the score wins over words that contradict it or name another place than the map's largest region, the
        answer is given again, beginning with what the map says; the result then still tells whether the language
        model itself disagreed with the score. To whether all is well it is not first asked for its own opinion.
        """
        if not self.model.speaks:
            return prediction(look, question, "", self.verdict)
        if self.verdict == "answer":
            return prediction(look, question, self.answer(look, question, history), self.verdict)
        told = soundness_opening(question, look.is_anomalous, look.place)
        answer = self.answer(look, question, history, told)
        found = prediction(look, question, answer, self.verdict)
        opening = None if told else contradicting_opening(question, answer, look.is_anomalous, look.place)
        return found if opening is None else replace(found, answer=self.answer(look, question, history, opening))

    def predict(self, photo: Image.Image, question: str | None = None, class_name: str | None = None) -> Prediction:
        """Looks at a photo and answers one question about it.

        Args:
            question: by default, whether there is an anomaly in it.
            class_name: what it shows; by default what the question names, else ``object``.
        """
        question = question or detection_question(class_name, with_description=False)
        found = class_name or class_in_prompt(question, self.text_class_rule)
        return self.ask(self.look(photo, found), question)


def prediction(look: Look, question: str, answer: str, verdict: Verdict = "answer") -> Prediction:
    """A look and the language model's own answer, with the verdict that follows from them.

    Args:
        verdict: who wins where they contradict each other.
    """
    said = says_anomalous(question, answer)
    is_anomalous, source = decide(said, look.is_anomalous, verdict)
    return Prediction(
        question=question,
        answer=answer,
        is_anomalous=is_anomalous,
        verdict_from=source,
        answer_agrees=said is None or said == look.is_anomalous,
        score=look.score,
        map=look.map,
        threshold=look.threshold,
        regions=look.regions,
        class_name=look.class_name,
        probability=look.probability,
    )


def find_regions(anomaly_map: NDArray[np.float32], threshold: float) -> tuple[Region, ...]:
    """The connected parts of a map (height, width) above a threshold, largest first; specks are left out."""
    height, width = anomaly_map.shape
    labels, _ = label_regions(anomaly_map > threshold)
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
