"""The one path from a photo to an answer: demo, command line, evaluation and users call this class."""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig, InferenceConfig
from anomalygpt.config.settings import GenerationSettings, PartsPrior, PhotoSettings
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.photos import current_settings, ignored_area
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError, full_gpu
from anomalygpt.inference.anomaly_map import image_scores, text_maps, top_mean
from anomalygpt.inference.answer_check import check_answer, left_out, stream_checked
from anomalygpt.inference.answers import class_in_prompt
from anomalygpt.inference.calibration import MOST_UNLABELLED, Calibration, ReferenceReport, TextCalibration, calibrate
from anomalygpt.inference.language_models import History, LanguageModel, PromptedModel, build_chat_model
from anomalygpt.inference.references import Encoded, References, UnlabelledPhotos, cosine_distances
from anomalygpt.inference.regions import regions_of_verdict
from anomalygpt.inference.results import ImageResult, Prediction, Reason, prediction
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.build import build_model, choose_device
from anomalygpt.model.checkpoint import read_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import calibrate_map


class Predictor:
    """Anomaly maps, verdicts and answers of a model in evaluation mode, with or without reference photos."""

    def __init__(
        self,
        model: AnomalyGPT,
        settings: InferenceConfig | None = None,
        generation: GenerationSettings | None = None,
        language_model: LanguageModel | None = None,  # by default the model's own, if it has one
    ) -> None:
        self.model = model
        self.settings = settings or InferenceConfig()
        self.generation = generation or GenerationSettings()
        reads_findings = self.settings.findings != "none"
        own = PromptedModel(model, self.generation, reads_findings) if model.has_llm else None
        self.language_model = language_model or own
        spec = model.encoder.spec
        self._without_references = ImageTransform(spec.size, spec.mean, spec.std, "squash")
        # The released demo crops wherever references are used, and squashes everywhere else (specification 2).
        official = self.settings.geometry == "official"
        self._with_references = ImageTransform(spec.size, spec.mean, spec.std, "crop" if official else "squash")
        self._known_parts: Tensor | None = None
        if known := self.settings.known_parts:
            self._known_parts = read_tensors(resolve(known))["embeddings"].to(model.device)
            if self._known_parts.shape[1] != spec.embed_width:
                raise UserError(f"inference.known_parts: {known}: expected {spec.embed_width} numbers a photo")
        self.references: References | None = None  # the photos that maps are computed from
        self.unlabelled: UnlabelledPhotos | None = None  # without references: the photos that judge each other
        self._calibrations: dict[str, Calibration] = {}  # by class name
        self._without_odd: Predictor | None = None  # with the references but those that are unlike the others, if any
        self.adapts = False  # whether photos without a label sharpen the calibration by the references, too

    @classmethod
    def from_config(cls, config: ExperimentConfig, device: str = "auto", *, with_llm: bool = True) -> "Predictor":
        """Builds an experiment's model and a predictor around it; without a language model if not ``with_llm``."""
        model = build_model(config, choose_device(device), with_llm=with_llm, inference=True)
        other = build_chat_model(config, model.encoder) if with_llm else None
        return cls(model, config.inference, config.llm.generation if config.llm else None, other)

    def without_references(self) -> "Predictor":
        """Another predictor with the same model and settings, and no references."""
        return Predictor(self.model, self.settings, self.generation, self.language_model)

    def copy(self) -> "Predictor":
        """Another predictor with the same model, settings and references, whose feedback is its own."""
        other = self.without_references()
        if self.references is not None:
            other.references, other._without_odd = copy(self.references), self._without_odd
            other.references.observed = deepcopy(self.references.observed)
        return other

    @property
    def transform(self) -> ImageTransform:
        """How the next photo is brought to the encoder's size."""
        return self._without_references if self.references is None else self._with_references

    @property
    def photo_settings(self) -> PhotoSettings | None:
        """How photo files are to be read: as the references were; None, without any: as ``photos.configure`` said."""
        return self.references.photo_settings if self.references else None

    def use_evaluation_geometry(self) -> None:
        """Makes ``geometry: official`` crop photos without references too: as the paper evaluates (specification 2)."""
        self._without_references = self._with_references

    def set_references(self, photos: Sequence[Image.Image], saved: Path | None = None) -> None:
        """Replaces the references by these photos of good parts; without any, maps come from text features.

        ``saved``: a file of :meth:`save_references`, to whose references these photos are added, with its settings.
        Raises what :class:`References` and :meth:`References.load` raise.
        """
        if saved:
            references = References.load(saved, self.model, self._with_references)
            for photo in photos:
                references.add(photo)
        else:
            references = References(self.model, self.settings.references, self._with_references, photos)
        self.references, self.unlabelled = references if len(references) else None, None
        self._calibrations, self._without_odd = {}, None
        self.calibrated(UNNAMED_CLASS)  # now, so that the first photo does not wait for it
        report = self.report() if self.references else None
        if report and 0 < len(odd := {*report.foreign, *report.odd}) < len(references):
            self._without_odd = self.without_references()
            self._without_odd.references = references.without(odd)

    def set_unlabelled(self, photos: Iterable[Image.Image]) -> None:
        """Lets three or more photos of one part judge each other, without references; only these can be inspected."""
        group = UnlabelledPhotos(self.model, self.settings.references, self._without_references, photos)
        self._calibrations = {UNNAMED_CLASS: group.calibration(self.settings.false_alarm_rate)}
        self.references, self.unlabelled, self._without_odd = None, group, None

    def save_references(self, path: Path) -> None:
        """Writes the references to a safetensors file. Raises :class:`UserError`: there are none, or it can't be."""
        if self.references is None:
            raise UserError(f"{path}: there are no references to save")
        self.references.save(path)

    def feedback(self, image: ImageResult, good: bool | None) -> None:
        """Counts a photo as good or bad from now on, or by None as neither; DatasetError without its part."""
        if self.references is None or image.reason == "other_part":
            raise DatasetError("a photo is called good or bad only where there are references, and of the same part")
        observed, score = self.references.observed_as(image.class_name), round(image.score, 6)
        observed[score] = good
        if good is None:
            del observed[score]
        self._calibrations = {}

    def forget_feedback(self) -> None:
        """Withdraws all that :meth:`feedback` and ``adapts`` added."""
        if self.references is not None:
            self.references.observed, self._calibrations = {}, {}

    def calibrated(self, class_name: str) -> Calibration | TextCalibration:
        """What turns the scores of one kind of part into probabilities, and its thresholds."""
        references = self.references
        if self.unlabelled:
            return self._calibrations[UNNAMED_CLASS]
        if references is None:
            return TextCalibration(self.settings.map_threshold)
        key = references.calibration_class(class_name)
        if key not in self._calibrations:
            maps, (parts, scale) = references.held_out_maps(key), self._other_parts(references, key)
            scores, seen = image_scores(maps, references.settings).tolist(), references.observed_as(key)
            rate, count = self.settings.false_alarm_rate, len(references)
            about: dict[str, Any] = {"references": count, "parts": parts, "scale": scale, "observed": seen}
            self._calibrations[key] = calibrate(scores, maps, rate, **about)
        return self._calibrations[key]

    def _other_parts(self, references: References, class_name: str = UNNAMED_CLASS) -> tuple[PartsPrior | None, float]:
        """What is known of other parts' scores, and these references' scores relative to them."""
        # A trusted text map is near zero on a good photo, so that the blend shrinks by its weight.
        own_weight = 1 - references.text_weight(class_name)
        parts = self.settings.calibration.get(references.settings.unchanged_preset or "") if own_weight else None
        return parts, own_weight ** (1 - references.settings.contrast) if parts else 1.0

    def inspect(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> ImageResult:
        """Encodes a photo of any mode and size, and computes its map; its EXIF orientation is respected."""
        return self.inspect_batch([photo], class_name)[0]

    @full_gpu()
    @torch.inference_mode()
    def inspect_batch(self, photos: Sequence[Image.Image], class_name: str = UNNAMED_CLASS) -> list[ImageResult]:
        """The results of several photos of one kind of part at once: faster on a GPU, no slower on a CPU."""
        encoded = self.references.encode(photos) if self.references else None
        images = self._inspect(photos, encoded, class_name)
        if self._without_odd is None:
            return images
        pairs = zip(images, self._without_odd._inspect(photos, encoded, class_name), strict=True)
        return [replace(image, probability_without_odd=other.probability) for image, other in pairs]

    def _inspect(self, photos: Sequence[Image.Image], encoded: Encoded | None, class_name: str) -> list[ImageResult]:
        """The results of photos, which the references have encoded, if any."""
        if self.references and encoded:
            features, maps = self.references.anomaly_maps(encoded, class_name)
        elif self.unlabelled:
            features, maps = self.unlabelled.anomaly_maps(photos)
        else:
            features, maps = text_maps(self.model, photos, class_name, self.transform, self.settings.text_scales)
        return [self._result(each, features[[i]], maps[i : i + 1], class_name) for i, each in enumerate(photos)]

    def _result(self, photo: Image.Image, features: ImageFeatures, model_map: Tensor, class_name: str) -> ImageResult:
        photo = ImageOps.exif_transpose(photo)
        if ignore := (self.photo_settings or current_settings()).ignore:  # it is seen up to a patch, 14 pixels, off
            area = self.transform.mask(ignored_area(photo.size, ignore).convert("L"))[None].to(model_map.device)
            model_map = model_map * (1 - F.max_pool2d(F.interpolate(area, model_map.shape[-2:]), 29, 1, padding=14))
        on_photo = self.transform.to_photo(model_map[0, 0], photo.size).cpu().numpy()
        calibration, compared = self.calibrated(class_name), self.references or self.unlabelled
        share = self.settings.text_top_share
        score = float(image_scores(model_map, compared.settings) if compared else top_mean(model_map, share))
        probability = calibration.probability(score)
        reason = self._reason(features, probability)
        if self.adapts and self.references and reason != "other_part":
            observed = self.references.observed_as(class_name)
            observed.setdefault(round(score, 6), None)
            for earlier in [score for score, good in observed.items() if good is None][:-MOST_UNLABELLED]:
                del observed[earlier]
            self._calibrations = {}
        rescaled = self.settings.prompt_map == "calibrated" and compared
        # Where another part than expected differs says nothing about defects.
        is_anomalous = reason == "near_threshold" or (not reason and probability > 0.5)
        return ImageResult(
            features=features,
            model_map=model_map,
            photo=photo,
            map=on_photo,
            score=score,
            threshold=calibration.threshold,
            score_threshold=calibration.score_threshold,
            regions=regions_of_verdict(on_photo, calibration.threshold, is_anomalous),
            class_name=class_name,
            score_probability=probability,
            prompt_map=calibrate_map(model_map, calibration.threshold) if rescaled else model_map,
            references=len(self.references or ()),
            reason=reason,
        )

    def _reason(self, features: ImageFeatures, probability: float) -> Reason:
        settings = self.settings
        limit = settings.other_part_above if self.references else settings.unknown_part_above
        known = self.references.embeddings if self.references else None if self.unlabelled else self._known_parts
        if limit is not None and known is not None and cosine_distances(features.embedding[0], known).min() > limit:
            return "other_part" if self.references else "unknown_part"
        return "near_threshold" if abs(probability - 0.5) < settings.undecided else ""

    def report(self) -> ReferenceReport:
        """Judges the references by each other. Raises :class:`UserError` where there are none."""
        if (references := self.references) is None:
            raise UserError("there are no references to judge")
        parts, scale = self._other_parts(references)
        usual = parts.at(len(references))[1] + math.log(scale) if parts else None
        scores = image_scores(references.held_out_maps(), references.settings).tolist()
        embeddings = references.embeddings[: len(references)]
        return ReferenceReport.of(embeddings, scores, references.sources, self.settings, usual)

    def stream(self, image: ImageResult, question: str, history: History = ()) -> Generator[str, None, Prediction]:
        """Yields the answer to a question about a photo piece by piece, and returns it complete with the verdict.

        With ``inference.findings``, a sentence is yielded when it does not contradict the photo's findings (see
        ``answer_check``), and the verdict is the score's. Closing the generator stops it.
        """
        if self.language_model is None:
            return prediction(image, question, "", self.settings.verdict)
        if self.settings.findings == "none":
            answer = ""
            for text in self.language_model.texts(image, question, history):
                yield text[len(answer) :]
                answer = text
            return prediction(image, question, answer, self.settings.verdict)
        checked = yield from stream_checked(self.language_model, image, question, history)
        agrees = all(fault.kind != "verdict" for fault in checked.contradictions)
        return Prediction(image, question, checked.text, image.is_anomalous, "score", agrees, checked.source)

    def ask(self, image: ImageResult, question: str, history: History = ()) -> Prediction:
        """Asks about a photo: the result of :meth:`stream`."""
        *_, found = with_result(self.stream(image, question, history))
        return found

    def predict_batch(
        self, photos: Sequence[Image.Image], question: str | None = None, class_name: str | None = None
    ) -> Iterator[Prediction]:
        """Maps of photos, which are encoded at once, and the answer to one question about each.

        By default it is whether there is an anomaly; they show what the question names, else an ``object``.
        """
        question = question or detection_question(class_name, with_description=False)
        named = class_name or class_in_prompt(question, self.settings.text_class_rule)
        images = self.inspect_batch(photos, named) if photos else []
        own, is_checked = self.language_model, self.settings.findings != "none"
        answers: list[str | None] = [None] * len(images)
        if len(images) > 1 and isinstance(own, PromptedModel):
            answers = [*own.answers(images, [question] * len(images))]
        for image, answer in zip(images, answers, strict=True):
            said = answer or "", question, image.findings
            if answer is None or (is_checked and (check_answer(*said) or left_out(*said))):
                yield self.ask(image, question)  # alone, which also corrects it
            else:
                yield prediction(image, question, answer, "score" if is_checked else self.settings.verdict)


def with_result(answer: Generator[str, None, Prediction]) -> Generator[Any, None, None]:
    """The pieces of an answer, then what its generator returns."""
    yield (yield from answer)
