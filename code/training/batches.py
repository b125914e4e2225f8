"""A run's data, and endless batches of them, which a resumed run continues where it stopped."""

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.build import build_findings, build_pairs
from anomalygpt.datasets.instructions import Instructions
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.model.build import image_spec


@dataclass(frozen=True)
class Data:
    """A run's training and held-back samples (pairs, or conversations about findings), and its instructions."""

    train: Any
    validation: Any = None
    instructions: Instructions | None = None


def build_data(config: ExperimentConfig, *, decode_all: bool) -> Data:
    """The data of a run; ``decode_all`` as in :func:`build_pairs`. Raises :class:`DatasetError`."""
    spec = image_spec(config.encoder)
    if config.data.findings:
        return Data(*build_findings(config.data, spec.embed_width, config.seed))
    transform = ImageTransform(spec.size, spec.mean, spec.std)
    pairs = build_pairs(config.data, transform, config.seed, decode_all=decode_all)
    for each in filter(None, pairs):
        each.cached_photos = config.data.cached_photos
    if (source := config.data.instructions) is None or not config.training.answers:
        return Data(*pairs)
    return Data(*pairs, Instructions(resolve(source.conversations), resolve(source.images), transform))


def endless_batches(
    dataset: Dataset[Any], collate: Callable[..., Any], config: ExperimentConfig, process: Process, start: int = 0
) -> Generator[Any]:
    """Yields micro-batches without end, from number ``start`` of this process on; closing it ends the loader processes.

    The order depends on the seed and the epoch alone. An incomplete last batch of an epoch is left out. Raises
    :class:`UserError`: the data set is smaller than one batch of all processes, or a photo can't be read.
    """
    batch_size, workers = config.training.micro_batch_size, config.data.workers
    place = process.world_size, process.rank
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, *place, seed=config.seed, drop_last=True)
    per_epoch = sampler.num_samples // batch_size
    if per_epoch == 0:
        at_once = f"micro_batch_size {batch_size} x {process.world_size} process(es)"
        advice = "lower training.micro_batch_size or add photos"
        raise UserError(f"{len(sampler.dataset)} samples are fewer than {at_once}; {advice}")  # type: ignore[arg-type]
    if workers:
        atexit.register(_kill_workers)
    order: list[int] = []  # of this process's samples in an epoch
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        worker_init_fn=_ignore_signals,
        persistent_workers=workers > 0,  # forking a process that holds a model of gigabytes takes seconds
    )
    epoch, skipped = divmod(start, per_epoch)
    while True:
        sampler.set_epoch(epoch)
        order[:] = list(sampler)[skipped * batch_size :]
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        try:
            yield from loader
        except UserError as error:
            # The message of a worker's error is its traceback; the last line is "module.Class: message".
            if "\n" not in str(error):
                raise
            raise type(error)(str(error).rstrip().splitlines()[-1].partition(": ")[2]) from None
        epoch, skipped = epoch + 1, 0


def _ignore_signals(_: int) -> None:
    """In a worker: launchers and terminals signal every process of a run, and the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    """Python's exit with open loaders would send SIGTERM, which they ignore, and wait; for a stuck one forever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises for a worker that is killed
    for child in multiprocessing.active_children():
        child.kill()
