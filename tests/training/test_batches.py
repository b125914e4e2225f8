"""The endless batches: the same whatever the number of loader processes, and taken up where a run stopped."""

import os
import signal
from itertools import islice

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.transforms import load_image
from anomalygpt.training.batches import endless_batches
from anomalygpt.training.distributed import Process
from anomalygpt.training.engine import BatchError

SAMPLES = 10


class Numbers(Dataset):
    """(epoch, index), and what the process that answers does when it is told to stop."""

    def __init__(self):
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch):
        self.epoch[0] = epoch

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return int(self.epoch), index, os.getpid(), signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def batches(count: int, *, workers: int = 0, start: int = 0, rank: int = 0, world_size: int = 1) -> list:
    process = Process(rank, rank, world_size, torch.device("cpu"))
    endless = endless_batches(Numbers(), list, batch_size=3, process=process, seed=1, workers=workers, start=start)
    return list(islice(endless, count))


def shown(found: list) -> list:
    return [[sample[:2] for sample in batch] for batch in found]


def test_loader_processes_change_no_batch_over_several_epochs():
    alone, shared = batches(10), batches(10, workers=2)
    assert shown(alone) == shown(shared)
    assert [batch[0][0] for batch in alone] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_loader_processes_live_on_from_epoch_to_epoch_and_leave_stopping_to_the_main_one():
    samples = [sample for batch in batches(9, workers=2) for sample in batch]
    assert len({sample[2] for sample in samples}) == 2
    assert os.getpid() not in {sample[2] for sample in samples}
    assert all(sample[3] for sample in samples)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_run_goes_on_with_the_batch_after_the_last(start, workers):
    assert shown(batches(4, start=start, workers=workers)) == shown(batches(start + 4))[start:]


def test_an_epoch_shows_each_process_its_own_share():
    shares = [shown(batches(1, rank=rank, world_size=3)) for rank in range(3)]
    seen = [index for [batch] in shares for _, index in batch]
    assert len(set(seen)) == 9


def test_fewer_samples_than_a_round_of_all_processes_are_refused():
    with pytest.raises(BatchError, match=r"10 samples are fewer than micro_batch_size 3 x 4 process"):
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
    process = Process(0, 0, 1, torch.device("cpu"))
    with pytest.raises(DatasetError, match=r"cut\.png") as caught:
        next(endless_batches(Photos(tmp_path), list, batch_size=2, process=process, seed=1, workers=workers))
    assert "\n" not in str(caught.value)
