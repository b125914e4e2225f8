"""Parts of the training loop: a stop, the one-shot reference's views, and which held-back pairs are measured."""

from types import SimpleNamespace

import pytest
import torch

from anomalygpt.config.load import load_config
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.training import checkpoints, loop
from anomalygpt.training.batches import Data
from anomalygpt.training.loop import Trainer
from anomalygpt.training.validation import evenly_spaced


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    """A trainer without a model, which validates and draws after every step."""
    config = load_config("train_mvtec", ["training.validate_every=1"])
    data, process = Data(train=range(4), validation=range(2)), Process(0, 1, torch.device("cpu"))
    return Trainer(SimpleNamespace(module=torch.nn.Linear(1, 1)), data, config, process, tmp_path, total_steps=10)


def test_a_stop_saves_and_says_how_to_go_on(trainer, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoints, "save_state", lambda *arguments: saved.append(arguments[2]))
    trainer.request_stop()
    with pytest.raises(UserError, match="stopped at step 7 as asked; start the same command again to go on"):
        trainer._after_step(7)
    assert saved == [7]


def test_a_stop_skips_the_validation_and_the_picture_of_its_step(trainer, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_state", lambda *_: True)
    done = []
    monkeypatch.setattr(loop, "validate", lambda *_: done.append("validated") or {"total": 1.0})
    monkeypatch.setattr(checkpoints, "keep_best", lambda *_: None)
    monkeypatch.setattr(loop, "draw_samples", lambda *arguments: done.append(arguments[-1].name))
    trainer._after_step(6)
    trainer.request_stop()
    with pytest.raises(UserError):
        trainer._after_step(7)
    trainer._after_step(10)
    assert done == ["validated", "step0000006.png", "validated", "step0000010.png"]


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(trainer, monkeypatch):
    monkeypatch.setattr(trainer, "_optimizer_step", lambda *_: {"total": float("nan"), "focal": 1.0})
    trainer._not_finite = ["a.png", "b.png"]
    words = r"step 4: .*not a finite number \(total nan\) on a\.png, b\.png; .*training\.optimizer\.lr"
    with pytest.raises(UserError, match=words):
        trainer._steps(3)


def test_weights_that_are_not_finite_take_no_checkpoints_place(trainer, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_state", lambda *_: pytest.fail("saved"))
    monkeypatch.setattr(loop, "draw_samples", lambda *_: None)
    trainer.data = Data(train=range(4))
    torch.nn.init.constant_(trainer.model.weight, torch.inf)
    with pytest.raises(UserError, match=r"step 10: .*\(of the weights nan\); the last checkpoint stays"):
        trainer._after_step(10)


def test_the_validation_pairs_are_spread_over_all_classes():
    pairs = [name for name in ("bottle", "cable", "screw") for _ in range(10)]
    assert list(evenly_spaced(pairs, 6)) == ["bottle", "bottle", "cable", "cable", "screw", "screw"]
    assert list(evenly_spaced(["a", "b"], 64)) == ["a", "b"]
