"""Checkpoints of a run. A run that is killed at any moment finds its last whole checkpoint again.

A checkpoint is a folder ``checkpoints/step0000100``. It counts only once the file ``whole`` lies in it, which rank 0
writes last, after every process has written its share.
"""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from anomalygpt.distributed import Process, all_agree, barrier
from anomalygpt.errors import UserError
from anomalygpt.model.checkpoint import part_of

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
WHOLE = "whole"
FACTS = "run.json"  # what a checkpoint is bound to
NO_FACTS: Mapping[str, Any] = {}


def save_state(
    engine: Any, folder: Path, step: int, process: Process, keep: int, facts: Mapping[str, Any] = NO_FACTS
) -> bool:
    """Saves all that a run needs to go on, then removes checkpoints older than the last ``keep``.

    A save that fails (a full disk) is told and taken back; the run and its former checkpoints stay.

    Args:
        facts: what the checkpoint is bound to beside what the engine tells, see :func:`require_same_run`.

    Returns:
        Whether the checkpoint is whole.
    """
    target = folder / FOLDER / _tag(step)
    # After each part all processes agree, so that none waits for one that has given up.
    for part in (
        lambda: _prepare(target, process),
        lambda: _write(engine, target, step, process, facts),
        lambda: _mark(target, process),
    ):
        if not all_agree(_attempt(part, target)):
            if process.is_main:
                shutil.rmtree(target, ignore_errors=True)
            return False
    if process.is_main:
        for old in whole_checkpoints(folder)[:-keep]:
            (old / WHOLE).unlink(missing_ok=True)  # first, so that a kill leaves no half of it that looks whole
            shutil.rmtree(old, ignore_errors=True)
    barrier()
    return True


def load_state(engine: Any, folder: Path, process: Process) -> int:
    """Restores the newest whole checkpoint of a run folder; the step to go on from, 0 without one.

    Raises:
        UserError: it is damaged.
    """
    found = whole_checkpoints(folder)
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
        _restore_random(torch.load(_random_file(newest, process), weights_only=True))
    # A damaged file makes DeepSpeed and the unpickler raise nearly anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{newest}: can't be read, it is damaged ({reason}); delete it to go on from the one before"
        ) from error
    logger.info("resumed %s at step %d", newest, client["step"])
    return int(client["step"])


def require_same_run(engine: Any, folder: Path, process: Process, facts: Mapping[str, Any] = NO_FACTS) -> None:
    """Compares this run with the one that wrote the folder's newest checkpoint, if there is one; writes nothing.

    Args:
        facts: what has to be the same beside the engine's own: name -> value. A checkpoint that was written without one
            of them is not asked for it.

    Raises:
        UserError: something differs, such as the number of processes, the ZeRO stage or the trained parts.
    """
    found = whole_checkpoints(folder)
    if found:
        _compare(found[-1], {**_engine_facts(engine, process), **facts})


def _engine_facts(engine: Any, process: Process) -> dict[str, Any]:
    """What has to be the same in the run that goes on: DeepSpeed divides its files by these."""
    trained: Counter[str] = Counter()
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            # Under ZeRO 3 a parameter's own size is 0.
            trained[part_of(name) or name] += getattr(parameter, "ds_numel", parameter.numel())
    precision = "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    return {
        "number of processes": process.world_size,
        "training.zero_stage": engine.zero_optimization_stage(),
        "training.precision": precision,
        "training.offload_optimizer": engine.zero_offload_optimizer() is not None,
        "trained parameters": ", ".join(f"{part} {count:,}" for part, count in sorted(trained.items())),
    }


def _compare(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    path = checkpoint / FACTS
    try:
        written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); delete {checkpoint.name} to go on without it") from error
    differ = [f"{key} {value}, here {facts.get(key)}" for key, value in written.items() if facts.get(key) != value]
    if differ:
        raise UserError(
            f"{checkpoint} was written with {'; '.join(differ)}. Take the run up as it was (its config.yaml lies in "
            f"{checkpoint.parents[1]}), or choose another training.output"
        )


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted(marker.parent for marker in (folder / FOLDER).glob(f"step*/{WHOLE}"))


def _prepare(target: Path, process: Process) -> None:
    if process.is_main:
        (target / WHOLE).unlink(missing_ok=True)
        target.mkdir(parents=True, exist_ok=True)


def _write(engine: Any, target: Path, step: int, process: Process, facts: Mapping[str, Any]) -> None:
    with _late_errors(engine):
        engine.save_checkpoint(
            str(target.parent),
            tag=target.name,
            client_state={"step": step},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
    torch.save(_random_states(), _random_file(target, process))
    if process.is_main:
        bound_to = {**_engine_facts(engine, process), **facts}
        (target / FACTS).write_text(json.dumps(bound_to, indent=2) + "\n", encoding="utf-8")
    for path in (*target.iterdir(), target):  # a power cut must not leave the mark without the files
        _flush(path)


@contextmanager
def _late_errors(engine: Any) -> Iterator[None]:
    """Holds back a failing file's error until the block's end, in which DeepSpeed's processes wait for each other."""
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
        yield
    finally:
        checkpoint_engine.save = save
    if errors:
        raise errors[0]


def _mark(target: Path, process: Process) -> None:
    if process.is_main:
        (target / WHOLE).touch()
        _flush(target)


def _flush(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # another process's temporary file; a folder on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _attempt(act: Callable[[], None], target: Path) -> bool:
    try:
        act()
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        logger.error("%s: the checkpoint could not be written (%s); the run goes on", target, _reason(error, target))
        return False
    return True


def _reason(error: Exception, target: Path) -> str:
    """The error's first line; the free space says more than torch's own words."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return text
    return f"{text.rstrip('. ')}; {free / 2**20:,.0f} MiB free there"


def _random_file(target: Path, process: Process) -> Path:
    return target / f"random_{process.rank:03d}.pt"


def _random_states() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _tag(step: int) -> str:
    return f"step{step:07d}"
