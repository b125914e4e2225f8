"""Endless batches, epoch after epoch, that a resumed run takes up where it stopped."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from anomalygpt.distributed import Process
from anomalygpt.errors import UserError

LEAVING_TAKES = 5.0  # seconds, for a worker that was told to leave


class ResumableSampler(DistributedSampler[Any]):
    """This process's share of an epoch, in the epoch's order; ``skip`` samples were seen before the run stopped."""

    skip = 0

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.skip, None)


class _Told(Dataset[Any]):
    """Gives a sample's :class:`UserError` in its place: a loader process makes a traceback of what it raises."""

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except UserError as error:
            return error


def _collate_told(collate: Callable[[Sequence[Any]], Any], samples: Sequence[Any]) -> Any:
    """The batch, or the first error among its samples."""
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    return errors[0] if errors else collate(samples)


def endless_batches(
    dataset: Dataset[Any],
    collate: Callable[[Sequence[Any]], Any],
    *,
    batch_size: int,
    process: Process,
    seed: int,
    workers: int = 0,
    start: int = 0,
) -> Generator[Any]:
    """Yields batches for ever; closing it ends the loader processes.

    The order depends on the seed and the epoch alone. An incomplete last batch of an epoch is left out.

    Args:
        dataset: its ``set_epoch``, if there is one, is told each epoch.
        start: how many batches of this process came before.

    Raises:
        UserError: the data set is smaller than one batch of all processes.
        UserError: a sample's own, such as that of a photo that can't be read.
    """
    sampler = ResumableSampler(dataset, process.world_size, process.rank, seed=seed, drop_last=True)
    per_epoch = sampler.num_samples // batch_size
    if per_epoch == 0:
        raise UserError(
            f"{len(dataset)} samples are fewer than micro_batch_size {batch_size} x "  # type: ignore[arg-type]
            f"{process.world_size} process(es); lower training.micro_batch_size or add photos"
        )
    loader = DataLoader(
        _Told(dataset),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=partial(_collate_told, collate),
        drop_last=True,
        pin_memory=process.device.type == "cuda",
        # Its own generator: a new epoch would draw from the one that dropout uses, and a resumed run differ.
        generator=torch.Generator(),
        worker_init_fn=partial(_prepare_worker, _leaving()),
        persistent_workers=workers > 0,  # beside a model of gigabytes, forking them anew each epoch takes seconds
    )
    epoch, skipped = divmod(start, per_epoch)
    while True:
        sampler.set_epoch(epoch)
        sampler.skip = skipped * batch_size
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch
        epoch, skipped = epoch + 1, 0


@cache
def _leaving() -> Any:
    """What tells the workers of all loaders that their process leaves."""
    leaving = multiprocessing.RawValue("b", False)
    atexit.register(_end_workers, leaving)
    return leaving


def _prepare_worker(leaving: Any, _: int) -> None:
    """Leaves it to the main process when to stop: launchers and terminals send signals to every process of a run."""

    def stop_if_told(*_: object) -> None:
        if leaving.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop_if_told)


def _end_workers(leaving: Any) -> None:
    """Where the main process leaves with batches still to come: Python itself waits for a stuck worker for ever."""
    leaving.value = True
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises for a worker that is killed
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(LEAVING_TAKES)
        if worker.is_alive():
            worker.kill()
