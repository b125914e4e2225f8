"""Parts of the training loop: a stop, the one-shot reference's views, and which held-back pairs are measured."""

from types import SimpleNamespace

import pytest
import torch

from anomalygpt.config.load import load_config
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.training import checkpoints
from anomalygpt.training.loop import Data, Trainer, reference_views
from anomalygpt.training.validation import evenly_chosen
from tests.helpers import TINY


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


def part() -> torch.Tensor:
    """A part (1, 3, 224, 224) that looks different from each side."""
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_four_quarter_turns_the_photo_itself_first() -> None:
    views = reference_views(part(), rotated=True)
    assert views.shape == (1, 4, 3, 224, 224)
    assert torch.equal(views[:, 0], part())
    for turns in range(4):
        assert torch.equal(torch.rot90(views[0, turns], -turns, dims=(-2, -1)), part()[0])


def test_without_rotation_the_photo_alone() -> None:
    assert torch.equal(reference_views(part(), rotated=False), part().unsqueeze(1))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_reference_finds_rotated_part(turns: int) -> None:
    """A good part that lies the other way round is normal beside the four views, and strange beside the one."""
    torch.manual_seed(1)
    encoder = ImageBind(TINY).eval()
    query = torch.rot90(part(), turns, dims=(-2, -1))
    with torch.no_grad():
        seen = {
            rotated: MemoryBank(encoder.encode_image(reference_views(part(), rotated=rotated)[0]))
            .anomaly_map(encoder.encode_image(query), 224)
            .max()
            for rotated in (True, False)
        }
    assert float(seen[True]) < 1e-4
    assert float(seen[False]) > 1e-3


def test_a_part_of_the_held_back_pairs_is_spread_over_all_classes():
    pairs = [name for name in ("bottle", "cable", "screw") for _ in range(10)]
    chosen = evenly_chosen(pairs, 6)
    assert [chosen[i] for i in range(len(chosen))] == ["bottle", "bottle", "cable", "cable", "screw", "screw"]


def test_all_are_measured_where_there_are_few():
    chosen = evenly_chosen(["a", "b"], 64)
    assert [chosen[i] for i in range(len(chosen))] == ["a", "b"]
