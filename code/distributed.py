"""Joins the processes of one run: rank, device, and the few collectives that training and evaluation use."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from anomalygpt.errors import UserError


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0


def start(device: str = "auto", timeout: timedelta = timedelta(minutes=10)) -> Process:
    """Joins the processes started by ``deepspeed`` or ``torchrun``; else a run of one process.

    ``device`` is ``auto`` (CUDA if available), ``cuda`` or ``cpu``; a process waits for the others until a ``timeout``.
    Raises :class:`UserError` where a launcher's variable is missing, or this process has no GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    alone: dict[str, Any] = {}
    missing = [name for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if "RANK" not in os.environ:
        alone = {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed requires it
    elif missing:
        raise UserError(f"{', '.join(missing)} not set, beside RANK {os.environ['RANK']}; torchrun sets all of them")
    local_rank, place = int(os.environ["LOCAL_RANK"]), torch.device(device)
    if device == "cuda":
        if local_rank >= (count := torch.cuda.device_count()):
            advice = "start no more processes on a machine than it has GPUs; --device cpu trains without one"
            which = f"process {local_rank} of this machine (counted from 0)"
            raise UserError(f"--device cuda: {which} has no GPU: PyTorch finds {count}; {advice}")
        place = torch.device(device, local_rank)
        torch.cuda.set_device(place)
    os.environ.setdefault("DS_ACCELERATOR", device)  # read whenever a library first imports DeepSpeed
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout, **alone)
    return Process(torch.distributed.get_rank(), torch.distributed.get_world_size(), place)


def stop() -> None:
    """Leaves the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(is_main: bool, act: Callable[[], object]) -> None:
    """Calls ``act`` on the main process only. If that raises UserError or OSError, the others exit with code 2."""
    failure: UserError | OSError | None = None
    if is_main:
        try:
            act()
        except (UserError, OSError) as error:
            failure = error
    if not all_agree(failure is None):
        raise failure or SystemExit(2)


def all_agree(yes: bool) -> bool:
    """Whether ``yes`` is true on every process."""
    return summed([0.0 if yes else 1.0]) == [0.0]


def summed(values: Sequence[float]) -> list[float]:
    """The element-wise sums over all processes."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return list(values)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def barrier() -> None:
    """Waits until every process has called it."""
    summed([0.0])
