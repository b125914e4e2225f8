"""A predictor that answers at once, for tests of what is built around one."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.inference.predictor import ImageResult, Prediction, prediction
from anomalygpt.inference.regions import Region

TOP_LEFT = Region(box=(0, 0, 4, 4), area=0.01, position="top left", peak=1.0)


def result_with(region: Region, class_name: str, size: tuple[int, int] = (40, 30)) -> ImageResult:
    """An anomalous result for a photo of a size (width, height)."""
    model_map = torch.zeros(1, 1, 224, 224)
    photo_map = np.zeros(size[::-1], dtype=np.float32)
    photo_map[:4, :4] = 1
    return ImageResult(
        features=None,  # type: ignore[arg-type]
        model_map=model_map,
        map=photo_map,
        score=1.0,
        threshold=0.5,
        regions=(region,),
        class_name=class_name,
        probability=0.97,
        prompt_map=model_map,
    )


class FakePredictor:
    """Finds a region at the top left of every photo.

    Attributes:
        word: what its answers begin with.
        references: how many it was given.
        results: class names of the photos that it encoded.
        asked: questions with their history.
    """

    settings = InferenceConfig()

    def __init__(self, with_llm: bool = True, word: str = "Yes") -> None:
        self.model = SimpleNamespace(has_llm=with_llm)
        self.word = word
        self.references = 0
        self.inspected: list[str] = []
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        self.references = len(photos)

    def inspect(self, photo: Image.Image, class_name: str) -> ImageResult:
        self.inspected.append(class_name)
        return result_with(TOP_LEFT, class_name, photo.size)

    def ask(self, result: ImageResult, question: str, history: Sequence[tuple[str, str]]) -> Prediction:
        self.asked.append((question, list(history)))
        answer = f"{self.word}, {result.class_name} number {len(self.asked)}." if self.model.has_llm else ""
        return prediction(result, question, answer)
