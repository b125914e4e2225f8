"""What a run leaves in its folder beside numbers and checkpoints: how to repeat it, and the trained tensors."""

import json
import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from anomalygpt.config.load import commit, save_config, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.distributed import Process, all_agree, barrier
from anomalygpt.errors import UserError
from anomalygpt.files import replacing
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import save_tensors
from anomalygpt.training.partitioned import whole_delta

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "timm", "numpy", "opencv-python-headless")


def record_run(config: ExperimentConfig, folder: Path) -> None:
    """Writes ``config.yaml`` (every setting) and ``environment.json`` (commit, command, package versions).

    Raises:
        UserError: the folder can't be made or written.
    """
    packages = {name: _version(name) for name in RECORDED_PACKAGES}
    facts = {"commit": commit(), "command": sys.argv, "packages": packages}
    try:
        save_config(config, folder / CONFIG)
        with replacing(folder / "environment.json") as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error}); choose another training.output") from error


def require_shared(folder: Path) -> None:
    """Every process has to see what rank 0 has recorded: checkpoints are written and read by all of them together.

    Raises:
        UserError: on another machine the folder is another one.
    """
    barrier()
    if not all_agree((folder / CONFIG).is_file()):
        raise UserError(
            f"{folder}: not all processes see the same folder; training.output has to lie on a file system that all "
            f"machines of the run share"
        )


def export_delta(model: AnomalyGPT, config: ExperimentConfig, folder: Path, process: Process) -> Path:
    """Writes the trained tensors in half precision: ``model.safetensors``, which carries its config, and
    ``pytorch_model.pt``, the released deltas' format. Every process has to call it; rank 0 writes.

    Raises:
        CheckpointError: the disk is full or the folder can't be written.
    """
    tensors = whole_delta(model, config.training.trainable, torch.float16)
    path = folder / "model.safetensors"
    if not process.is_main:
        return path
    save_tensors(tensors, path, {"config": to_yaml(config)})
    save_tensors(tensors, folder / "pytorch_model.pt")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
