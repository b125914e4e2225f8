"""Small generated data trees, and the real photos where there are any."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from anomalygpt.datasets.transforms import ImageTransform
from tests.shared_data import shared


@pytest.fixture(scope="session")
def real_photos() -> Path:
    return shared("data/mvtec_layout")


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
    return ImageTransform(64, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


@pytest.fixture
def visa_tree(tmp_path: Path, write_photo: Callable[..., Path]) -> Path:
    """Two classes: two normal training photos, one normal test photo and one defect each."""
    root = tmp_path / "VisA"
    rows = ["object,split,label,image,mask"]
    for name in ("pcb1", "candle"):
        for number, split in enumerate(("train", "train", "test")):
            image = f"{name}/Data/Images/Normal/{number:04}.JPG"
            write_photo(root / image, seed=number)
            rows.append(f"{name},{split},normal,{image},")
        image, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        write_photo(root / image, seed=9)
        write_photo(root / mask, value=3)
        rows.append(f"{name},test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def loco_tree(tmp_path: Path, write_photo: Callable[..., Path]) -> Path:
    """One class; its logical anomaly has two masks of different values."""
    folder = tmp_path / "loco" / "pushpins"
    for split in ("train", "validation", "test"):
        for number in range(2):
            write_photo(folder / split / "good" / f"{number:03}.png", seed=number)
    for defect in ("logical_anomalies", "structural_anomalies"):
        write_photo(folder / "test" / defect / "000.png", seed=5)
        mask = Image.new("L", (40, 40), 0)
        mask.paste(255, (0, 0, 10, 10))
        (folder / "ground_truth" / defect / "000").mkdir(parents=True)
        mask.save(folder / "ground_truth" / defect / "000" / "000.png")
    second = Image.new("L", (40, 40), 0)
    second.paste(254, (30, 20, 40, 40))
    second.save(folder / "ground_truth" / "logical_anomalies" / "000" / "001.png")
    kinds = [
        {"defect_name": "missing pin", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
        {"defect_name": "extra pin", "pixel_value": 254, "saturation_threshold": 150, "relative_saturation": False},
    ]
    (folder / "defects_config.json").write_text(json.dumps(kinds))
    return folder.parent


@pytest.fixture
def crack_tree(tmp_path: Path, write_photo: Callable[..., Path]) -> Path:
    """Three marked roads, the last of them whole, and one that nobody marked. Road 2 encloses a whole spot."""
    root = tmp_path / "CrackForest"
    (root / "groundTruth").mkdir(parents=True)
    for number in (1, 2, 3, 201):
        write_photo(root / "image" / f"{number:03}.jpg", (48, 32), seed=number)
    for number in (1, 2, 3):
        segments = np.ones((32, 48), np.uint8)
        if number < 3:
            segments[10:14, 4:40] = 2
        if number == 2:
            segments[11:13, 10:20] = 3
            segments[28:30, 4:8] = 4
        savemat(
            root / "groundTruth" / f"{number:03}.mat",
            {"groundTruth": {"Segmentation": segments, "Boundaries": np.zeros_like(segments)}},
        )
    return root
