"""What the loop tells of a run that is stopped."""

from types import SimpleNamespace

import pytest
import torch

from anomalygpt.config.load import load_config
from anomalygpt.training import loop
from anomalygpt.training.distributed import Process
from anomalygpt.training.loop import Data, Stopped, Trainer


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (True, "stopped at step 7 as asked; start the same command again to go on"),
        (False, "its state could not be saved: it goes on from the checkpoint before"),
    ],
)
def test_a_stop_says_whether_its_state_is_saved(tmp_path, monkeypatch, saved, words):
    monkeypatch.setattr(loop, "save_state", lambda *_: saved)
    data, process = Data(train=range(4)), Process(0, 0, 1, torch.device("cpu"))
    trainer = Trainer(SimpleNamespace(), data, load_config("train_mvtec"), process, tmp_path, total_steps=10)
    trainer.stop_soon()
    with pytest.raises(Stopped, match=words):
        trainer._after_step(7)
