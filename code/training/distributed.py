"""One process or many: who am I, and how the processes meet."""

import logging
import os
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


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


def start(device: str = "auto") -> Process:
    """Joins the processes that ``deepspeed`` or ``torchrun`` started; alone, it is a run of one process.

    Args:
        device: ``auto`` (CUDA where there is one), ``cuda`` or ``cpu``.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("DS_ACCELERATOR", device)
    _alone_unless_launched()
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of its own defaults at every start
    if device == "cpu":
        # DeepSpeed would compile a shared-memory op for CPU runs, which needs a C++ compiler; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)
    return Process(
        rank=int(os.environ["RANK"]),
        local_rank=local_rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        device=torch.device(device, local_rank) if device == "cuda" else torch.device("cpu"),
    )


def _alone_unless_launched() -> None:
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def stop() -> None:
    """Leaves the group of processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
        torch.distributed.barrier()


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries still draw from the global generator)
    torch.manual_seed(seed)
