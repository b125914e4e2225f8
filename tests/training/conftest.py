"""An experiment that trains in seconds: photos drawn here, an untrained encoder of full shape, a tiny LLaMA."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from anomalygpt.model.checkpoint import PARTS
from tests.helpers import write_encoder, write_llm

PHOTOS = 6


@dataclass(frozen=True)
class Experiment:
    """A config file, and the folder that its runs go to."""

    config: Path
    runs: Path


def draw_parts(root: Path) -> None:
    """Good photos of two classes: a disc and a bar on a grey ground, each a little different."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    for name, shape in (("disc", (x - 48) ** 2 + (y - 48) ** 2 < 900), ("bar", abs(y - 48) < 14)):
        folder = root / name / "train" / "good"
        folder.mkdir(parents=True)
        (root / name / "test" / "good").mkdir(parents=True)
        for number in range(PHOTOS):
            photo = np.where(shape, 190, 70)[..., None] + rng.normal(0, 12, (96, 96, 3))
            image = Image.fromarray(photo.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{number:03}.png")
            image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(root / name / "test" / "good" / f"{number:03}.png")


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    root = tmp_path_factory.mktemp("experiment")
    draw_parts(root / "data")
    write_encoder(root / "encoder.safetensors")
    write_llm(root / "llm")
    settings = {
        "base": "train_compact_2_answer",
        "name": "tiny",
        "deltas": [],
        "encoder": {"weights": str(root / "encoder.safetensors")},
        "llm": {"weights": str(root / "llm"), "max_target_tokens": 96, "lora": {"rank": 2, "dropout": 0.1}},
        "data": {"sources": [{"kind": "mvtec", "root": str(root / "data")}], "validation_share": 0.2},
        "training": {
            "trainable": list(PARTS), "steps": 4, "batch_size": 2, "micro_batch_size": 1, "save_every": 2,
            "validate_every": 4, "validation_pairs": 1, "output": str(root / "runs" / "tiny"),
        },
    }  # fmt: skip
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return Experiment(path, root / "runs")


@pytest.fixture(scope="session")
def words(experiment: Experiment) -> Experiment:
    """The stage that trains on findings alone, with the same small model."""
    settings = {
        "base": "train_compact_3_words",
        "name": "tiny_words",
        "deltas": [],
        **{part: yaml.safe_load(experiment.config.read_text())[part] for part in ("encoder", "llm")},
        "data": {"findings": 10, "validation_share": 0.2},
        "training": {
            "steps": 4, "batch_size": 2, "save_every": 2, "validate_every": 4,
            "output": str(experiment.runs / "tiny_words"),
        },
    }  # fmt: skip
    settings["llm"]["max_target_tokens"] = 512
    path = experiment.config.with_name("words.yaml")
    path.write_text(yaml.safe_dump(settings))
    return Experiment(path, experiment.runs)
