"""Checkpoints of a run: DeepSpeed's own files, the newest whole one found again."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"


def save_state(engine: Any, folder: Path, step: int, is_main: bool) -> None:
    """Saves what a run needs to go on: trained weights, optimiser, scheduler, step. Older checkpoints are removed."""
    root = folder / FOLDER
    rng = torch.get_rng_state()
    engine.save_checkpoint(
        str(root), tag=_tag(step), client_state={"step": step, "rng": rng}, exclude_frozen_parameters=True
    )
    if is_main:
        for old in root.glob("step*"):
            if old.name != _tag(step):
                shutil.rmtree(old, ignore_errors=True)


def load_state(engine: Any, folder: Path) -> int:
    """Restores the newest checkpoint of a run folder; the step to go on from, 0 without one."""
    root = folder / FOLDER
    if not (root / "latest").is_file():
        return 0
    # Frozen parameters are not in the file; they came from their own weight files.
    path, client = engine.load_checkpoint(str(root), load_module_strict=False)
    if path is None:
        return 0
    torch.set_rng_state(client["rng"])
    logger.info("resumed %s at step %d", path, client["step"])
    return int(client["step"])


def _tag(step: int) -> str:
    return f"step{step:07d}"
