"""Which weights are kept as the best."""

import math

import pytest
import torch
from torch import nn

from anomalygpt.distributed import Process
from anomalygpt.model.checkpoint import read_metadata
from anomalygpt.training.checkpoints import BEST, BestWeights

ALONE = Process(0, 0, 1, torch.device("cpu"))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_decoder = nn.Linear(2, 1)


@pytest.fixture
def offered(tmp_path):
    """Offers losses, step after step, and says which one the file holds then."""

    def offer(*losses: float, resumed: bool = False) -> float | None:
        best = BestWeights(tmp_path, ALONE, resumed=resumed)
        for step, loss in enumerate(losses, start=1):
            best.offer(Decoder(), ["image_decoder"], step, loss)
        kept = read_metadata(tmp_path / BEST).get("validation_loss")
        return float(kept) if kept is not None else None

    return offer


def test_the_lowest_loss_is_kept(offered):
    assert offered(0.5, 0.3, 0.4) == 0.3


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_not_kept(offered, loss):
    assert offered(loss) is None
    assert offered(loss, 0.5, loss) == 0.5


def test_a_resumed_run_has_to_do_better_than_the_file(offered):
    offered(0.3)
    assert offered(0.4, resumed=True) == 0.3
    assert offered(0.2, resumed=True) == 0.2


def test_a_file_that_another_run_left_is_no_bar_to_a_new_one(offered):
    offered(0.3)
    assert offered(0.4) == 0.4


def test_what_could_not_be_written_is_no_bar(tmp_path, offered, caplog):
    blocked = tmp_path / BEST
    (blocked / "in the way").mkdir(parents=True)
    best = BestWeights(tmp_path, ALONE, resumed=True)
    best.offer(Decoder(), ["image_decoder"], 1, 0.3)
    assert "the run goes on" in caplog.text
    (blocked / "in the way").rmdir()
    blocked.rmdir()
    best.offer(Decoder(), ["image_decoder"], 2, 0.4)
    assert read_metadata(blocked)["validation_loss"] == "0.400000"


def test_a_damaged_file_is_no_bar(tmp_path, offered):
    (tmp_path / BEST).write_bytes(b"damaged")
    assert offered(0.4, resumed=True) == 0.4
