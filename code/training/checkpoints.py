"""The run's folder: checkpoints to resume from, the best weights so far, the exported delta, and the run's settings.

A checkpoint is a folder ``checkpoints/step0000100``. It counts only once it holds the file ``whole``, which rank 0
writes last, after every process has written its share: a run killed at any moment finds its last complete one.
"""

import json
import logging
import math
import os
import shutil
import sys
from collections import Counter
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
WHOLE = "whole"
FACTS = "run.json"  # what a checkpoint is bound to
NO_FACTS: Mapping[str, Any] = {}
RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "timm", "numpy", "opencv-python-headless")


def record_run(config: ExperimentConfig, folder: Path) -> None:
    """Writes ``config.yaml`` (every setting) and ``environment.json`` (commit, command, package versions).

    Raises:
        UserError: the folder can't be made or written.
    """
    versions = {package.name: package.version for package in distributions()}
    packages = {name: versions.get(name) for name in RECORDED_PACKAGES}
    environment = {"commit": commit(), "command": sys.argv, "packages": packages}
    try:
        save_config(config, folder / CONFIG)
        with replacing(folder / "environment.json") as temporary:
            temporary.write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error}); choose another training.output") from error


def require_shared(folder: Path) -> None:
    """Checks that every process sees what rank 0 has recorded: they write and read checkpoints together.

    Raises:
        UserError: on another machine the folder is another one.
    """
    barrier()
    if not all_agree((folder / CONFIG).is_file()):
        raise UserError(
            f"{folder}: not all processes see the same folder; training.output has to lie on a file system that all "
            f"machines of the run share"
        )


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block, parameters that ZeRO stage 3 partitions are complete on every process, for reading only.

    Every process has to call it, in the same order. Under other stages it does nothing.
    """
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned):
        yield


def direct_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module with submodules holds itself (an encoder's positions, the base prompts).

    DeepSpeed gathers a layer's parameters when the layer is called. Calling another method of a model (an encoder's
    ``encode_image``) calls its layers, but not the module that holds these.
    """
    composites = [module for module in model.modules() if next(module.children(), None) is not None]
    return [parameter for module in composites for parameter in module.parameters(recurse=False)]


def _gathered_delta(model: nn.Module, parts: Sequence[str]) -> dict[str, Tensor]:
    """The parts' tensors by name, whatever the ZeRO stage: copies on the CPU in fp16, on every process."""
    with gathered(parameter for name, parameter in model.named_parameters() if part_of(name) in parts):
        return delta_tensors(model, parts, torch.float16)


def export_delta(model: AnomalyGPT, config: ExperimentConfig, folder: Path, process: Process) -> Path:
    """Writes the trained tensors in half precision: ``model.safetensors``, which carries its config, and
    ``pytorch_model.pt``, the released deltas' format. Every process has to call it; rank 0 writes.

    Raises:
        CheckpointError: the disk is full or the folder can't be written.
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
                loss = float(read_metadata(self.path).get(LOSS, math.inf))
                self._lowest = loss if math.isfinite(loss) else math.inf

    def offer(self, model: AnomalyGPT, trainable: Sequence[str], step: int, loss: float) -> None:
        """Writes the weights if the loss is below the file's. Every process has to call it; rank 0 writes.

        If the disk is full, that is logged, and the file and its loss stay.
        """
        better = math.isfinite(loss) and loss < self._lowest
        if not all_agree(not self.process.is_main or better):  # rank 0 decides: it alone has read the file
            return
        tensors = _gathered_delta(model, trainable)
        if not self.process.is_main:
            return
        try:
            save_tensors(tensors, self.path, {"step": str(step), LOSS: f"{loss:.6f}"})
            self._lowest = loss
        except CheckpointError as error:
            logger.error("%s; the run goes on", error)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(marker.parent for marker in (folder / FOLDER).glob(f"step*/{WHOLE}"))


def save_state(
    engine: Any, folder: Path, step: int, process: Process, keep: int, facts: Mapping[str, Any] = NO_FACTS
) -> bool:
    """Saves everything that a run needs to resume, then removes all but the last ``keep`` checkpoints.

    A save that fails (a full disk) is logged and undone; the run and its earlier checkpoints stay.

    Args:
        facts: what the checkpoint is bound to besides the engine's own, see :func:`require_same_run`.

    Returns:
        Whether the checkpoint is complete.
    """
    target = folder / FOLDER / f"step{step:07d}"

    def prepare() -> None:
        if process.is_main:
            (target / WHOLE).unlink(missing_ok=True)
            target.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        _save_engine(engine, target, step)
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state()
        torch.save(states, target / f"random_{process.rank:03d}.pt")
        if process.is_main:
            bound_to = {**_engine_facts(engine, process), **facts}
            (target / FACTS).write_text(json.dumps(bound_to, indent=2) + "\n", encoding="utf-8")
        for path in (*target.iterdir(), target):  # a power cut must not leave the mark without the files
            _flush(path)

    def mark() -> None:
        if process.is_main:
            (target / WHOLE).touch()
            _flush(target)

    for part in (prepare, write, mark):
        succeeded = False
        try:
            part()
            succeeded = True
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            free = shutil.disk_usage(folder).free / 2**20  # which says more than torch's own words
            reason = f"{_first_line(error)}; {free:,.0f} MiB free there"
            logger.error("%s: the checkpoint could not be written (%s); the run goes on", target, reason)
        if not all_agree(succeeded):  # after each part, so that no process waits for one that has given up
            if process.is_main:
                shutil.rmtree(target, ignore_errors=True)
            return False
    if process.is_main:
        for old in complete_checkpoints(folder)[:-keep]:
            (old / WHOLE).unlink(missing_ok=True)  # first: a kill must not leave half of it looking complete
            shutil.rmtree(old, ignore_errors=True)
    barrier()
    return True


def load_state(engine: Any, folder: Path, process: Process) -> int:
    """Restores the newest complete checkpoint of a run folder; the step to resume from, 0 without one.

    Raises:
        UserError: it is damaged.
    """
    found = complete_checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    if process.is_main:  # left by a save that was cut off
        for torn in set((folder / FOLDER).glob("step*")) - set(found):
            shutil.rmtree(torn, ignore_errors=True)
    try:
        # Frozen parameters are not in the file; they came from their own weight files.
        path, client = engine.load_checkpoint(str(newest.parent), tag=newest.name, load_module_strict=False)
        if path is None:
            raise RuntimeError("DeepSpeed finds no files of its own")
        states = torch.load(newest / f"random_{process.rank:03d}.pt", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    # A damaged file makes DeepSpeed and the unpickler raise nearly anything.
    except Exception as error:
        raise UserError(
            f"{newest}: can't be read, it is damaged ({_first_line(error)}); delete it to go on from the one before"
        ) from error
    logger.info("resumed %s at step %d", newest, client["step"])
    return int(client["step"])


def require_same_run(engine: Any, folder: Path, process: Process, facts: Mapping[str, Any] = NO_FACTS) -> None:
    """Compares this run with the one that wrote the folder's newest checkpoint, if there is one; writes nothing.

    Args:
        facts: what has to be the same besides the engine's own: name -> value. A checkpoint that was written without
            one of them is not checked for it.

    Raises:
        UserError: something differs, such as the number of processes, the ZeRO stage or the trained parts.
    """
    found = complete_checkpoints(folder)
    if not found:
        return
    path, here = found[-1] / FACTS, {**_engine_facts(engine, process), **facts}
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    differ = [f"{key} {value}, here {here.get(key)}" for key, value in written.items() if here.get(key) != value]
    if differ:
        raise UserError(
            f"{path.parent} was written with {'; '.join(differ)}. Take the run up as it was (its config.yaml lies in "
            f"{folder}), or choose another training.output"
        )


def _engine_facts(engine: Any, process: Process) -> dict[str, Any]:
    """What has to be the same in the run that resumes: DeepSpeed partitions its files by these."""
    trained: Counter[str] = Counter()
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            # Under ZeRO 3 a parameter's own size is 0.
            trained[part_of(name) or name] += getattr(parameter, "ds_numel", parameter.numel())
    return {
        "number of processes": process.world_size,
        "training.zero_stage": engine.zero_optimization_stage(),
        "training.precision": "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32",
        "training.offload_optimizer": engine.zero_offload_optimizer() is not None,
        "trained parameters": ", ".join(f"{part} {count:,}" for part, count in sorted(trained.items())),
    }


def _save_engine(engine: Any, target: Path, step: int) -> None:
    """DeepSpeed's own save; a failing file's error is raised at its end, since its processes wait for each other."""
    errors: list[Exception] = []
    checkpoint_engine = engine.checkpoint_engine
    save = checkpoint_engine.save

    def attempt(*args: Any, **kwargs: Any) -> None:
        try:
            save(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            errors.append(error)

    checkpoint_engine.save = attempt
    # Rank 0 alone would copy DeepSpeed's conversion scripts into the folder. That can fail, too, and nothing uses them.
    engine._copy_recovery_script = lambda _: None
    try:
        engine.save_checkpoint(
            str(target.parent),
            tag=target.name,
            client_state={"step": step},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
    finally:
        checkpoint_engine.save = save
    if errors:
        raise errors[0]


def _flush(path: Path) -> None:
    with suppress(FileNotFoundError, PermissionError):  # another process's temporary file; a folder on Windows
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
