"""A predictor that answers at once, for tests of what is built around one."""

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.inference.calibration import ReferenceReport
from anomalygpt.inference.results import AnswerSource, ImageResult, Prediction, prediction


def write_photos(folder: Path, count: int) -> list[str]:
    """Writes photos of different grey values; returns their paths."""
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (40 * number, 80, 80)).save(path)
    return paths


TOP_LEFT = RegionFinding("top left", (0, 0, 4, 4), 0.01, 1.0, "compact")


def result_with(region: RegionFinding, class_name: str, size: tuple[int, int] = (40, 30)) -> ImageResult:
    """An anomalous result for a photo of a size (width, height)."""
    model_map = torch.zeros(1, 1, 224, 224)
    photo_map = np.zeros(size[::-1], dtype=np.float32)
    photo_map[:4, :4] = 1
    return ImageResult(
        features=None,  # type: ignore[arg-type]
        model_map=model_map,
        photo=Image.new("RGB", size),
        map=photo_map,
        score=1.0,
        threshold=0.5,
        regions=(region,),
        class_name=class_name,
        score_probability=0.97,
        prompt_map=model_map,
    )


class FakePredictor:
    """Finds a region at the top left of every photo; ``word`` begins its answers."""

    settings = InferenceConfig()
    photo_settings = None

    def __init__(self, with_llm: bool = True, word: str = "Yes", source: AnswerSource = "model") -> None:
        self.language_model = SimpleNamespace() if with_llm else None
        self.word, self.source = word, source
        self.references: list[Image.Image] = []
        self.inspected: list[str] = []  # class names
        self.marked: list[bool] = []
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []  # questions with their history

    def set_references(self, photos: Sequence[Image.Image], saved: Path | None = None) -> None:
        old = int(saved.read_text().split()[0]) if saved else 0
        self.references = [Image.new("RGB", (8, 8))] * old + list(photos)

    def save_references(self, path: Path) -> None:
        path.write_text(f"{len(self.references)} {self.marked}")

    def copy(self) -> "FakePredictor":
        other = FakePredictor(self.language_model is not None, self.word, self.source)
        other.references, other.marked = self.references, list(self.marked)
        return other

    def feedback(self, image: ImageResult, good: bool) -> None:
        self.marked.append(good)

    def report(self) -> ReferenceReport:
        names = tuple(f"/srv/photos/{number}.png" for number in range(len(self.references)))
        return ReferenceReport(names, 0.1, (), (), 0.1, 0.5)

    def inspect(self, photo: Image.Image, class_name: str) -> ImageResult:
        self.inspected.append(class_name)
        return result_with(TOP_LEFT, class_name, photo.size)

    def stream(
        self, result: ImageResult, question: str, history: Sequence[tuple[str, str]]
    ) -> Generator[str, None, Prediction]:
        self.asked.append((question, list(history)))
        pieces = (f"{self.word},", f" {result.class_name} number {len(self.asked)}.") if self.language_model else ()
        yield from pieces
        return replace(prediction(result, question, "".join(pieces)), answer_source=self.source)
