"""The run's folder: checkpoints to resume from, the best weights so far, the exported delta, and the run's settings.

A checkpoint is a folder ``checkpoints/step0000100``. It is complete once it holds ``run.json``, which rank 0 writes
last, after every process has written its files: a run killed at any moment finds its last complete one.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomalygpt.config.load import commit, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.distributed import Process, all_agree, barrier
from anomalygpt.errors import UserError, first_line
from anomalygpt.files import write_files
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import delta_tensors, part_of, read_metadata, save_tensors
from anomalygpt.training.engine import LOST_PROCESS

logger = logging.getLogger(__name__)

BEST = "best.safetensors"
LOSS = "validation_loss"
FOLDER = "checkpoints"
IDENTITY = "run.json"  # what has to be the same in the run that resumes; marks a complete checkpoint


def record_run(config: ExperimentConfig, folder: Path) -> None:
    """Writes ``config.yaml`` (every setting) and ``environment.json`` (commit, command, package versions)."""
    packages = {package.name: package.version for package in distributions()}
    environment = {"commit": commit(), "command": sys.argv, "packages": packages}
    write_files(folder, {"config.yaml": to_yaml(config), "environment.json": environment})


def _gathered_delta(model: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """The parts' tensors by name, whatever the ZeRO stage: copies on the CPU in fp16, on every process."""
    import deepspeed  # here, since it takes seconds

    with deepspeed.zero.GatheredParameters(p for name, p in model.named_parameters() if part_of(name) in parts):
        return delta_tensors(model, parts, torch.float16)


def export_delta(model: AnomalyGPT, config: ExperimentConfig, folder: Path, process: Process) -> Path:
    """Writes the trained tensors in half precision: ``model.safetensors``, which carries its config, and
    ``pytorch_model.pt``, the released deltas' format. Every process has to call it; rank 0 writes.
    """
    tensors = _gathered_delta(model, config.training.trainable)
    path = folder / "model.safetensors"
    if process.is_main:
        save_tensors(tensors, path, {"config": to_yaml(config)})
        save_tensors(tensors, folder / "pytorch_model.pt")
    return path


def keep_best(model: nn.Module, parts: Sequence[str], folder: Path, step: int, loss: float, process: Process) -> None:
    """Writes ``best.safetensors`` if its validation loss is lower; every process has to call it, rank 0 writes."""
    path = folder / BEST
    if all_agree(not process.is_main or not path.exists() or loss < float(read_metadata(path)[LOSS])):
        tensors = _gathered_delta(model, parts)
        if process.is_main:
            save_tensors(tensors, path, {"step": str(step), LOSS: f"{loss:.6f}"})


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(marker.parent for marker in (folder / FOLDER).glob(f"step*/{IDENTITY}"))


def save_state(engine: Any, folder: Path, step: int, process: Process, keep: int, identity: Mapping[str, Any]) -> None:
    """Saves everything that a run needs to resume, then removes all but the last ``keep`` checkpoints.

    Every process has to call it. ``identity`` is what has to be the same in the run that resumes. Raises
    :class:`UserError` where it can't be written, as on a full disk; the checkpoints before it stay.
    """
    target = folder / FOLDER / f"step{step:07d}"
    try:
        options = {"save_latest": False, "exclude_frozen_parameters": True}
        engine.save_checkpoint(str(target.parent), tag=target.name, client_state={"step": step}, **options)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if any(words in str(error) for words in LOST_PROCESS):
            raise
        free = shutil.disk_usage(folder).free / 2**20  # torch's message does not name a full disk
        reason = f"could not be written ({first_line(error)}; {free:,.0f} MiB free there)"
        advice = "make room, then start the same command again to go on from the one before"
        raise UserError(f"{target}: the checkpoint {reason}; {advice}") from error
    os.sync()  # a power cut must not leave run.json without the other files
    barrier()
    if process.is_main:
        write_files(target, {IDENTITY: identity})
        for old in complete_checkpoints(folder)[:-keep]:
            (old / IDENTITY).unlink()  # first: a kill must not leave half of it marked as complete
            shutil.rmtree(old, ignore_errors=True)
    barrier()


def load_state(engine: Any, folder: Path, process: Process, identity: Mapping[str, Any]) -> int:
    """Restores the newest complete checkpoint -> its step, or 0; UserError: it is another run's, or damaged."""
    found = complete_checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    written = json.loads((newest / IDENTITY).read_text(encoding="utf-8"))
    differ = [f"{key} {written.get(key)}, here {value}" for key, value in identity.items() if written.get(key) != value]
    if differ:
        advice = f"Take the run up as it was (its config.yaml lies in {folder}), or choose another training.output"
        raise UserError(f"{newest} was written with {'; '.join(differ)}. {advice}")
    if process.is_main:
        for interrupted in set((folder / FOLDER).glob("step*")) - set(found):
            shutil.rmtree(interrupted, ignore_errors=True)
    try:
        # Frozen parameters are not in the file; they came from their own weight files.
        _, client = engine.load_checkpoint(str(newest.parent), tag=newest.name, load_module_strict=False)
        step = int(client["step"])
    except Exception as error:  # DeepSpeed and the unpickler raise nearly anything for a damaged file
        reason = f"it is damaged or of another model ({first_line(error)})"
        raise UserError(f"{newest}: can't be read, {reason}; delete it to go on from the one before") from error
    logger.info("resumed %s at step %d", newest, step)
    return step
