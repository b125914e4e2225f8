"""What the loop tells of a run that is stopped."""

from types import SimpleNamespace

import pytest
import torch

from anomalygpt.config.load import load_config
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.training import checkpoints
from anomalygpt.training.loop import Data, Trainer


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (True, "stopped at step 7 as asked; start the same command again to go on"),
        (False, "its state could not be saved: it goes on from the checkpoint before"),
    ],
)
def test_a_stop_says_whether_its_state_is_saved(tmp_path, monkeypatch, saved, words):
    monkeypatch.setattr(checkpoints, "save_state", lambda *_: saved)
    data, process = Data(train=range(4)), Process(0, 0, 1, torch.device("cpu"))
    trainer = Trainer(SimpleNamespace(), data, load_config("train_mvtec"), process, tmp_path, total_steps=10)
    trainer.stop_soon()
    with pytest.raises(UserError, match=words):
        trainer._after_step(7)


def test_a_stop_does_not_wait_for_what_is_due_after_its_step(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_state", lambda *_: True)
    settings = load_config("train_mvtec", ["training.validate_every=1", "training.picture_every=1"])
    data, process = Data(train=range(4)), Process(0, 0, 1, torch.device("cpu"))
    trainer = Trainer(SimpleNamespace(), data, settings, process, tmp_path, total_steps=10)
    done = []
    monkeypatch.setattr(trainer, "_validate", lambda step: done.append(("validated", step)))
    monkeypatch.setattr(trainer, "_draw", lambda step: done.append(("drawn", step)))
    trainer._after_step(6)
    trainer.stop_soon()
    with pytest.raises(UserError):
        trainer._after_step(7)
    trainer._after_step(10)
    assert done == [("validated", 6), ("drawn", 6), ("validated", 10), ("drawn", 10)]
