"""What a run leaves in its folder beside numbers and checkpoints: how to repeat it, and the trained tensors."""

import json
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from anomalygpt.config.load import commit, save_config, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import delta_tensors, save_tensors

logger = logging.getLogger(__name__)

RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "timm", "numpy", "opencv-python-headless")


def record_run(config: ExperimentConfig, folder: Path) -> None:
    """Writes ``config.yaml`` (every setting) and ``environment.json`` (commit, command, package versions)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    packages = {name: _version(name) for name in RECORDED_PACKAGES}
    facts = {"commit": commit(), "command": sys.argv, "packages": packages}
    (folder / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")


def export_delta(model: AnomalyGPT, config: ExperimentConfig, folder: Path) -> Path:
    """Writes the trained tensors in half precision: ``model.safetensors``, which carries its config, and
    ``pytorch_model.pt``, the released deltas' format.
    """
    tensors = delta_tensors(model, config.training.trainable, torch.float16)
    path = folder / "model.safetensors"
    save_tensors(tensors, path, {"config": to_yaml(config)})
    save_tensors(tensors, folder / "pytorch_model.pt")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
