"""The run's folder: checkpoints to resume from, the best weights so far, the exported delta, and the run's settings.

A checkpoint is a folder ``checkpoints/step0000100``. It is complete once it holds the file ``whole``, which rank 0
writes last, after every process has written its files: a run killed at any moment finds its last complete one.
"""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomalygpt.config.load import commit, save_config, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.distributed import Process, all_agree, barrier
from anomalygpt.errors import UserError
from anomalygpt.files import replacing
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import CheckpointError, delta_tensors, part_of, read_metadata, save_tensors

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
BEST = "best.safetensors"
LOSS = "validation_loss"
FOLDER = "checkpoints"
COMPLETE = "whole"  # the empty file that marks a complete checkpoint
IDENTITY = "run.json"  # what has to be the same in the run that resumes
RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "timm", "numpy", "opencv-python-headless")


def record_run(config: ExperimentConfig, folder: Path) -> None:
    """Writes ``config.yaml`` (every setting) and ``environment.json`` (commit, command, package versions)."""
    versions = {package.name: package.version for package in distributions()}
    packages = {name: versions.get(name) for name in RECORDED_PACKAGES}
    environment = {"commit": commit(), "command": sys.argv, "packages": packages}
    save_config(config, folder / CONFIG)
    with replacing(folder / "environment.json") as temporary:
        temporary.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block, parameters that ZeRO stage 3 partitions are complete on every process, for reading only.

    Every process has to call it, in the same order. Under other stages it does nothing.
    """
    if partitioned := [parameter for parameter in parameters if hasattr(parameter, "ds_id")]:
        import deepspeed

        with deepspeed.zero.GatheredParameters(partitioned):
            yield
    else:
        yield


def _gathered_delta(model: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """The parts' tensors by name, whatever the ZeRO stage: copies on the CPU in fp16, on every process."""
    with gathered(parameter for name, parameter in model.named_parameters() if part_of(name) in parts):
        return delta_tensors(model, parts, torch.float16)


def export_delta(model: AnomalyGPT, config: ExperimentConfig, folder: Path, process: Process) -> Path:
    """Writes the trained tensors in half precision: ``model.safetensors``, which carries its config, and
    ``pytorch_model.pt``, the released deltas' format. Every process has to call it; rank 0 writes, or raises
    :class:`CheckpointError` where it can't.
    """
    tensors = _gathered_delta(model, config.training.trainable)
    path = folder / "model.safetensors"
    if process.is_main:
        save_tensors(tensors, path, {"config": to_yaml(config)})
        save_tensors(tensors, folder / "pytorch_model.pt")
    return path


class BestWeights:
    """``best.safetensors`` in the run's folder: the trained tensors with the lowest validation loss so far.

    Args:
        resumed: whether the run was resumed from a checkpoint; to a new run, an existing file is another run's.
    """

    def __init__(self, folder: Path, process: Process, *, resumed: bool) -> None:
        self.path = folder / BEST
        self.process = process
        self._lowest = math.inf
        if resumed and process.is_main:
            with suppress(CheckpointError, OSError, ValueError):  # no file, or a damaged one
                self._lowest = float(read_metadata(self.path).get(LOSS, math.inf))

    def offer(self, model: AnomalyGPT, trainable: Sequence[str], step: int, loss: float) -> None:
        """Writes the weights if the loss is below the file's. Every process has to call it; rank 0 writes.

        Raises:
            CheckpointError: the file can't be written.
        """
        better = math.isfinite(loss) and loss < self._lowest
        if not all_agree(not self.process.is_main or better):  # rank 0 decides: it alone has read the file
            return
        tensors = _gathered_delta(model, trainable)
        if self.process.is_main:
            save_tensors(tensors, self.path, {"step": str(step), LOSS: f"{loss:.6f}"})
            self._lowest = loss


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(marker.parent for marker in (folder / FOLDER).glob(f"step*/{COMPLETE}"))


def save_state(engine: Any, folder: Path, step: int, process: Process, keep: int, identity: Mapping[str, Any]) -> None:
    """Saves everything that a run needs to resume, then removes all but the last ``keep`` checkpoints.

    Every process has to call it. ``identity`` is that of :func:`require_same_run`.

    Raises:
        UserError: it can't be written, as on a full disk; the checkpoints before it stay.
    """
    target = folder / FOLDER / f"step{step:07d}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        options = {"save_latest": False, "exclude_frozen_parameters": True}
        engine.save_checkpoint(str(target.parent), tag=target.name, client_state={"step": step}, **options)
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        torch.save(states, target / f"random_{process.rank:03d}.pt")
        if process.is_main:
            (target / IDENTITY).write_text(json.dumps(dict(identity), indent=2) + "\n", encoding="utf-8")
        for path in (*target.iterdir(), target):  # a power cut must not leave the marker without the files
            _flush(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(folder).free / 2**20  # torch's message does not name a full disk
        raise UserError(
            f"{target}: the checkpoint could not be written ({_first_line(error)}; {free:,.0f} MiB free there); make "
            "room, then start the same command again to go on from the one before"
        ) from error
    barrier()
    if process.is_main:
        (target / COMPLETE).touch()
        _flush(target)
        for old in complete_checkpoints(folder)[:-keep]:
            (old / COMPLETE).unlink(missing_ok=True)  # first: a kill must not leave half of it marked as complete
            shutil.rmtree(old, ignore_errors=True)
    barrier()


def load_state(engine: Any, folder: Path, process: Process, identity: Mapping[str, Any]) -> int:
    """Restores the newest complete checkpoint.

    Returns:
        The step to resume from, 0 without a checkpoint.

    Raises:
        UserError: as :func:`require_same_run`, or the checkpoint is damaged.
    """
    found = complete_checkpoints(folder)
    if not found:
        return 0
    require_same_run(folder, identity)
    newest = found[-1]
    if process.is_main:
        for interrupted in set((folder / FOLDER).glob("step*")) - set(found):
            shutil.rmtree(interrupted, ignore_errors=True)
    try:
        # Frozen parameters are not in the file; they came from their own weight files.
        path, client = engine.load_checkpoint(str(newest.parent), tag=newest.name, load_module_strict=False)
        if path is None:
            raise RuntimeError("DeepSpeed finds no files of its own")
        states = torch.load(newest / f"random_{process.rank:03d}.pt", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except Exception as error:  # DeepSpeed and the unpickler raise nearly anything for a damaged file
        raise _damaged(newest, error) from error
    logger.info("resumed %s at step %d", newest, client["step"])
    return int(client["step"])


def _damaged(checkpoint: Path, error: Exception) -> UserError:
    reason = f"it is damaged or of another model ({_first_line(error)})"
    return UserError(f"{checkpoint}: can't be read, {reason}; delete it to go on from the one before")


def require_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Compares this run with the one that wrote the folder's newest checkpoint, if there is one; writes nothing.

    Args:
        identity: name -> value, what has to be the same; names that the checkpoint lacks are not compared.

    Raises:
        UserError: something differs, or the checkpoint is damaged.
    """
    found = complete_checkpoints(folder)
    if not found:
        return
    path = found[-1] / IDENTITY
    try:
        written = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(found[-1], error) from error
    common = [key for key in identity if key in written]
    differ = [f"{key} {written[key]}, here {identity[key]}" for key in common if written[key] != identity[key]]
    if differ:
        raise UserError(
            f"{path.parent} was written with {'; '.join(differ)}. Take the run up as it was (its config.yaml lies in "
            f"{folder}), or choose another training.output"
        )


def _flush(path: Path) -> None:
    with suppress(FileNotFoundError, PermissionError):  # another process's temporary file; a folder on Windows
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
