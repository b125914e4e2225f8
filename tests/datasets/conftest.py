"""Small generated data trees, and the real photos where there are any."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.transforms import CLIP_MEAN, CLIP_STD, ImageTransform

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_photos() -> Path:
    folder = Path(os.environ.get("ANOMALYGPT_SHARED", ROOT.parent / "shared")) / "data" / "mvtec_layout"
    if not folder.is_dir():
        pytest.skip(f"no real photos: {folder} does not exist (set ANOMALYGPT_SHARED)")
    return folder


@pytest.fixture
def write_photo() -> Callable[..., Path]:
    """Writes a photo of dark random squares, or a mask of one value, and returns its path."""

    def write(path: Path, size: tuple[int, int] = (40, 40), value: int | None = None, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if value is not None:
            Image.new("L", size, value).save(path)
        else:
            pixels = np.random.default_rng(seed).integers(0, 120, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
        return path

    return write


@pytest.fixture
def mvtec_tree(tmp_path: Path, write_photo: Callable[..., Path]) -> Path:
    """Two classes, each with three good training photos, one good test photo and one crack with its mask."""
    for class_number, name in enumerate(("screw", "bottle")):
        for number in range(3):
            write_photo(tmp_path / name / "train" / "good" / f"{number:03}.png", seed=10 * class_number + number)
        write_photo(tmp_path / name / "test" / "good" / "000.png", seed=5)
        write_photo(tmp_path / name / "test" / "crack" / "000.png", seed=6)
        write_photo(tmp_path / name / "ground_truth" / "crack" / "000_mask.png", value=255)
    return tmp_path


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(64, CLIP_MEAN, CLIP_STD)
