"""The compact model, built once for all tests that need real weights; they are skipped where it can't be had."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalygpt.config.settings import PhotoSettings
from tests.shared_data import WEIGHTS, needs_weights, shared


@pytest.fixture(autouse=True)
def photo_settings_as_shipped() -> Iterator[None]:
    """Undoes what a command in the test's own process has set for its photos."""
    yield
    photos = sys.modules.get("anomalygpt.datasets.photos")
    if photos is not None:
        photos.configure(PhotoSettings())


@pytest.fixture(scope="session")
def compact_overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings under which the compact experiment builds: as it ships, or with a random delta where it has none yet."""
    needs_weights("dinov2_vits14", "smollm2_135m_instruct")
    if (WEIGHTS / "anomalygpt_compact" / "model.safetensors").is_file():
        return []
    import torch

    from anomalygpt.config.load import load_config
    from anomalygpt.model.build import build_model
    from anomalygpt.model.checkpoint import PARTS, delta_tensors, save_tensors

    torch.manual_seed(0)
    model = build_model(load_config("compact", ["deltas=[]"]), torch.device("cpu"))
    path = tmp_path_factory.mktemp("delta") / "model.safetensors"
    save_tensors(delta_tensors(model, PARTS, torch.float16), path)
    return [f"deltas=[{{path: {path}, parts: [{', '.join(PARTS)}]}}]"]


@pytest.fixture(scope="session")
def compact_predictor(compact_overrides: list[str]):
    """The shipped compact predictor; answers are short and the likeliest, so that tests are quick and the same."""
    from anomalygpt.config.load import load_config
    from anomalygpt.inference.predictor import Predictor

    quick = ["llm.generation.max_new_tokens=12", "llm.generation.temperature=0"]
    return Predictor.from_config(load_config("compact", [*compact_overrides, *quick]), "cpu")


@pytest.fixture
def predictor(compact_predictor):
    """The compact predictor without references, as every test finds and leaves it."""
    compact_predictor.set_references([])
    yield compact_predictor
    compact_predictor.set_references([])


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """Makes a photo of a grey part with a lighter disk; `scratch` draws a black bar at (column, row) of 0..1."""

    def make(
        size: tuple[int, int] = (224, 224), scratch: tuple[float, float] | None = None, seed: int = 0
    ) -> Image.Image:
        width, height = size
        y, x = np.mgrid[:height, :width]
        x, y = x / width - 0.5, y / height - 0.5
        grain = np.random.default_rng(seed).normal(0, 3, (height, width))
        grey = 110 + 60 * (np.hypot(x, y) < 0.35) + 20 * np.cos(12 * x) + grain
        if scratch is not None:
            column, row = scratch[0] - 0.5, scratch[1] - 0.5
            grey[(np.abs(x - column) < 0.06) & (np.abs(y - row) < 0.06)] = 5
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")

    return make


@pytest.fixture(scope="session")
def bottle_folder() -> Path:
    """Real photos of bottles in MVTec AD's layout."""
    return shared("data/mvtec_layout/bottle")
