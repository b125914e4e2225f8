"""One process or many: who am I, and how the processes meet."""

import logging
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

# How a starter that sets no RANK names a process's rank, its local rank (the first of these that is there) and the
# number of processes. The order counts: in a Slurm allocation mpirun starts one Slurm task a machine. Slurm's own
# number is that of the step: SLURM_NTASKS is set in a batch script and in an interactive shell, too, where one process
# runs.
STARTERS = (
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_LOCAL_RANK",), "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", ("MPI_LOCALRANKID", "SLURM_LOCALID"), "PMI_SIZE"),
    ("SLURM_PROCID", ("SLURM_LOCALID",), "SLURM_STEP_NUM_TASKS"),
)

_meeting: list[Any] = []  # the group of the barriers, where it is not that of all else


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


def start(device: str = "auto", patience: timedelta | None = None) -> Process:
    """Joins the processes that ``deepspeed`` or ``torchrun`` started; alone, it is a run of one process.

    Started by ``mpirun`` or ``srun``, it takes its place from their variables.

    Args:
        device: ``auto`` (CUDA where there is one), ``cuda`` or ``cpu``.
        patience: how long :func:`barrier` waits for a process that works on; None is DeepSpeed's ten minutes, which
            always holds while they find each other.

    Raises:
        UserError: the launcher has not said all that the processes need to meet, or there is no GPU for this one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    adopt_starter()
    _alone_unless_launched()
    _require_whole_launch()
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        _require_gpu(local_rank)
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of its own defaults at every start
    if device == "cpu":
        # DeepSpeed would compile a shared-memory op for CPU runs, which needs a C++ compiler; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)
    if patience is not None:
        _meeting.append(torch.distributed.new_group(timeout=patience))
    return Process(
        rank=int(os.environ["RANK"]),
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        device=torch.device(device, local_rank) if device == "cuda" else torch.device("cpu"),
    )


def adopt_starter() -> None:
    """Says in RANK, LOCAL_RANK and WORLD_SIZE what ``mpirun`` or ``srun`` say in variables of their own."""
    if "RANK" in os.environ:
        return
    for rank, local_ranks, size in STARTERS:
        if rank in os.environ and int(os.environ.get(size, "1")) > 1:
            os.environ.update(RANK=os.environ[rank], WORLD_SIZE=os.environ[size])
            found = [os.environ[name] for name in local_ranks if name in os.environ]
            os.environ.update({"LOCAL_RANK": found[0]} if found else {})
            return


def _alone_unless_launched() -> None:
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _require_whole_launch() -> None:
    missing = [name for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not set, beside RANK {os.environ['RANK']}: the processes of a run meet at "
            f"MASTER_ADDR (rank 0's machine) and MASTER_PORT (a free port there); export them, or start with torchrun"
        )


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
    """Leaves the group of processes."""
    _meeting.clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def on_main(is_main: bool, act: Callable[[], object]) -> None:
    """Does on the main process what only one may do. A user's mistake there ends the others, too, without a word.

    Raises:
        UserError, OSError: what ``act`` raised, on the main process.
    """
    mistake: UserError | OSError | None = None
    if is_main:
        try:
            act()
        except (UserError, OSError) as error:
            mistake = error
    if not all_agree(mistake is None):
        raise mistake or SystemExit(2)


def all_agree(yes: bool) -> bool:
    """Whether every process says yes."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return yes
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(int(yes), device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
    return bool(votes)


def summed(values: Sequence[float]) -> list[float]:
    """The sums over all processes, place by place."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return list(values)
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def barrier() -> None:
    """Waits until every process is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier(group=_meeting[0] if _meeting else None)


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries still draw from the global generator)
    torch.manual_seed(seed)
