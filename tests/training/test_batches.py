"""The endless batches: the same for any number of loader processes, and continued where a run stopped."""

import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from itertools import islice

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from anomalygpt.config.load import load_config
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.training.batches import endless_batches
from tests.shared_data import ROOT

SAMPLES = 10


class Numbers(Dataset):
    """(epoch, index, process id)."""

    def __init__(self):
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.epoch[0] = epoch

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return int(self.epoch), index, os.getpid()


def endless(*, workers: int = 0, start: int = 0, rank: int = 0, world_size: int = 1) -> Generator:
    process = Process(rank, world_size, torch.device("cpu"))
    return endless_batches(Numbers(), list, settings(3, workers), process, start)


def settings(batch_size: int, workers: int) -> ExperimentConfig:
    return load_config("train_mvtec", ["seed=1", f"training.micro_batch_size={batch_size}", f"data.workers={workers}"])


def batches(count: int, **options: int) -> list:
    """The first batches, without the process ids."""
    return [[sample[:2] for sample in batch] for batch in islice(endless(**options), count)]


def test_loader_processes_change_no_batch_over_several_epochs():
    alone = batches(10)
    assert alone == batches(10, workers=2)
    assert [batch[0][0] for batch in alone] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_loader_processes_stay_from_epoch_to_epoch_and_ignore_signals():
    found = endless(workers=2)
    first = [sample for batch in islice(found, 3) for sample in batch]
    workers = {sample[2] for sample in first}
    assert len(workers - {os.getpid()}) == 2
    for worker, number in itertools.product(workers, (signal.SIGTERM, signal.SIGINT)):
        os.kill(worker, number)
    later = [sample for batch in islice(found, 6) for sample in batch]
    assert {sample[2] for sample in later} == workers


STUCK = """
import ctypes, itertools
import anomalygpt
from tests.training.test_batches import Numbers, endless

count = itertools.count()

def stick_in_the_second_batch(self, index):
    if next(count) >= 3:  # of each worker
        lock = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(lock)
    return 0, index, 0

Numbers.__getitem__ = stick_in_the_second_batch
Numbers.__len__ = lambda self: 24
found = endless(workers=2), endless(workers=2)
for one in found:
    next(one), next(one)
raise SystemExit(3)
"""


def test_a_process_that_exits_in_the_middle_does_not_wait_for_stuck_loaders():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", STUCK], env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_closing_the_batches_ends_their_loaders():
    found = endless(workers=2)
    next(found)
    assert len(multiprocessing.active_children()) >= 2
    found.close()
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_resumed_run_continues_with_the_next_batch(start, workers):
    assert batches(4, start=start, workers=workers) == batches(start + 4)[start:]


def test_processes_get_different_samples():
    by_rank = [batches(1, rank=rank, world_size=3) for rank in range(3)]
    assert len({index for [batch] in by_rank for _, index in batch}) == 9


def test_fewer_samples_than_a_round_of_all_processes_are_refused():
    with pytest.raises(UserError, match=r"10 samples are fewer than micro_batch_size 3 x 4 process"):
        batches(1, world_size=4)


class Photos(Dataset):
    """A photo that can be read, and one that was cut off."""

    def __init__(self, folder):
        self.paths = [folder / "whole.png", folder / "cut.png"]
        Image.effect_noise((64, 64), 50).save(self.paths[0])
        self.paths[1].write_bytes(self.paths[0].read_bytes()[:-100])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return load_image(self.paths[index])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_read_is_one_line_from_a_loader_process_too(tmp_path, workers):
    process = Process(0, 1, torch.device("cpu"))
    with pytest.raises(DatasetError, match=r"cut\.png") as caught:
        next(endless_batches(Photos(tmp_path), list, settings(2, workers), process))
    assert "\n" not in str(caught.value)
