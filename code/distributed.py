"""Joins the processes of one run: rank, device, and the few collectives that training and evaluation use."""

import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from anomalygpt.errors import UserError

# Launchers that set no RANK: their variables for the rank, the local rank (the first that is set) and the number of
# processes. The order counts: inside a Slurm allocation, mpirun itself runs as one Slurm task per machine. The step's
# own task count is used, as SLURM_NTASKS is also set in a batch script, where a single process runs.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_LOCAL_RANK",), "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", ("MPI_LOCALRANKID", "SLURM_LOCALID"), "PMI_SIZE"),
    ("SLURM_PROCID", ("SLURM_LOCALID",), "SLURM_STEP_NUM_TASKS"),
)
# Of every collective but the barriers, and for the processes to find each other; named and set as DeepSpeed does.
TIMEOUT = timedelta(minutes=int(os.environ.get("DEEPSPEED_TIMEOUT", "10")))

_barrier_group: list[Any] = []  # a process group with its own timeout, where one was asked for


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def start(device: str = "auto", barrier_timeout: timedelta | None = None) -> Process:
    """Joins the processes started by ``deepspeed``, ``torchrun``, ``mpirun`` or ``srun``; else a run of one process.

    Args:
        device: ``auto`` (CUDA if available), ``cuda`` or ``cpu``.
        barrier_timeout: timeout of :func:`barrier`; None: ten minutes, as for every other collective.

    Raises:
        UserError: the launcher left out a variable that the processes need to meet, or there is no GPU for this one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adopt_launcher_environment()
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    missing = [name for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not set, beside RANK {os.environ['RANK']}: the processes of a run meet at "
            f"MASTER_ADDR (rank 0's machine) and MASTER_PORT (a free port there); export them, or start with torchrun"
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        _require_gpu(local_rank)
        torch.cuda.set_device(local_rank)
    os.environ.setdefault("DS_ACCELERATOR", device)  # read whenever a library first imports DeepSpeed
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    if barrier_timeout is not None:
        _barrier_group.append(torch.distributed.new_group(timeout=barrier_timeout))
    return Process(
        rank=int(os.environ["RANK"]),
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        device=torch.device(device, local_rank) if device == "cuda" else torch.device("cpu"),
    )


def adopt_launcher_environment() -> None:
    """Sets RANK, LOCAL_RANK and WORLD_SIZE from the variables of ``mpirun`` or ``srun``, unless RANK is set."""
    if "RANK" in os.environ:
        return
    for rank, local_ranks, size in LAUNCHERS:
        if rank in os.environ and int(os.environ.get(size, "1")) > 1:
            os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[size])
            found = [os.environ[name] for name in local_ranks if name in os.environ]
            os.environ.update({"LOCAL_RANK": found[0]} if found else {})
            return


def _require_gpu(local_rank: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise UserError("--device cuda: PyTorch finds no GPU here; --device cpu trains without one")
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} of this machine (counted from 0) has no GPU: PyTorch finds {count}; start no more "
            f"processes on a machine than it has GPUs"
        )


def stop() -> None:
    """Leaves the process group."""
    _barrier_group.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(is_main: bool, act: Callable[[], object]) -> None:
    """Calls ``act`` on the main process only. If it fails there, the other processes exit silently with code 2.

    Raises:
        UserError, OSError: from ``act``, on the main process.
    """
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
    if torch.distributed.is_initialized():
        torch.distributed.barrier(group=_barrier_group[0] if _barrier_group else None)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries still draw from the global generator)
    torch.manual_seed(seed)
