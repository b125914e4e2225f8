"""A generated MVTec-layout tree whose defects are black squares, and a predictor without a model."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.datasets.tree import index_tree
from anomalygpt.evaluation.cells import Plan
from anomalygpt.evaluation.evaluate import Evaluator
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.results import ImageResult, Prediction, prediction

SIDE = 32
# Rows and columns of the defect, whose centre lies in the middle ninth; it reaches into the top left one.
SQUARE = (8, 16)

RUN = {  # the facts of a run
    "command": "python run_eval.py --x",
    "config": "compact",
    "commit": "abc123",
    "references": "as in the paper",
    "seed": 42,
    "device": "cpu",
    "processes": 1,
    "trained on": ["delta: simulated defects on elsewhere"],
    "data": "data/tree (mvtec), 2 classes",
}


def write_photo(path: Path, seed: int, defect: bool = False) -> None:
    """A light, even photo with a little noise; a defect is a black square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(190, 210, (SIDE, SIDE, 3), dtype=np.uint8)
    if defect:
        pixels[slice(*SQUARE), slice(*SQUARE)] = 0
    Image.fromarray(pixels).save(path)


def write_class(part: Path, trained: int, tested: int) -> None:
    """A class in MVTec's layout: good training photos, and so many good and as many defective test photos."""
    for number in range(trained):
        write_photo(part / "train" / "good" / f"{number:03}.png", seed=number)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[slice(*SQUARE), slice(*SQUARE)] = 255
    (part / "ground_truth" / "hole").mkdir(parents=True)
    for number in range(tested):
        write_photo(part / "test" / "good" / f"{number:03}.png", seed=20 + number)
        write_photo(part / "test" / "hole" / f"{number:03}.png", seed=30 + number, defect=True)
        Image.fromarray(mask).save(part / "ground_truth" / "hole" / f"{number:03}_mask.png")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One class: ten good training photos, two good and two defective test photos."""
    write_class(tmp_path / "tree" / "bottle", 10, 2)
    return tmp_path / "tree"


class FakePredictor:
    """Its map is what ``see`` makes of the photo's darkness, 0..1; it says ``words(is_dark)``."""

    def __init__(
        self,
        see: Callable[[torch.Tensor], torch.Tensor] = lambda dark: dark,
        words: Callable[[bool], str] = lambda is_dark: "Yes, at the center." if is_dark else "No, there is not.",
    ) -> None:
        self.see, self.words = see, words
        self.transform = ImageTransform(SIDE, (0.0,) * 3, (1.0,) * 3)
        self.references: list[Image.Image] = []
        self.questions: list[str] = []

    def set_references(self, photos: list[Image.Image]) -> None:
        self.references = list(photos)

    def inspect(self, photo: Image.Image, class_name: str) -> ImageResult:
        dark = 1 - torch.from_numpy(np.array(photo.convert("L"), dtype=np.float32)) / 255
        seen = self.see(dark)
        is_dark = bool(dark.max() > 0.9)
        return ImageResult(
            features=SimpleNamespace(is_dark=is_dark),
            model_map=seen[None, None],
            photo=photo,
            map=seen.numpy(),
            score=float(seen.max()),
            threshold=0.5,
            regions=find_regions(seen.numpy(), 0.5),
            class_name=class_name,
            score_probability=float(seen.max()),
            prompt_map=seen[None, None],
        )

    def ask(self, image: ImageResult, question: str) -> Prediction:
        self.questions.append(question)
        return prediction(image, question, self.words(image.features.is_dark))

    def predict_batch(self, photos: list[Image.Image], question: str, class_name: str) -> list[Prediction]:
        return [self.ask(self.inspect(photo, class_name), question) for photo in photos]


@pytest.fixture
def fake_predictor() -> type[FakePredictor]:
    return FakePredictor


@pytest.fixture
def evaluator(tree: Path) -> Callable[..., Evaluator]:
    """Makes an evaluator of the tree's one class."""

    def make(predictor: FakePredictor, **options: object) -> Evaluator:
        given = {"records": index_tree(tree), "plan": Plan((0,)), "root": tree} | options
        return Evaluator(predictor, **given)

    return make
