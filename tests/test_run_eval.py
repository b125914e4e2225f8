"""The entry point: from a tree of photos to a table with the real encoder, and a wrong tree to one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalygpt.run_eval import main

ROOT = Path(__file__).resolve().parents[1]
MAPS_ONLY = ["--config", "compact", "--device", "cpu", "--no-chat", "--set", "deltas=[]"]


@pytest.fixture
def dinov2() -> None:
    if not (ROOT / "pretrained_ckpt" / "dinov2_vits14" / "model.safetensors").is_file():
        pytest.skip("needs pretrained_ckpt/dinov2_vits14 (python fetch_weights.py)")


def write(path: Path, seed: int, defect: bool = False) -> None:
    """A striped part with noise; a defect is a dark spot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = 150 + 60 * (np.arange(96) // 12 % 2)
    noise = np.random.default_rng(seed).integers(-6, 6, (96, 96, 3))
    pixels = stripes[None, :, None] + noise
    if defect:
        pixels[30:60, 40:70] = (90, 20, 20)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A class in MVTec's layout: two good training photos, one good and one defective test photo."""
    part = tmp_path / "tree" / "plate"
    for number in range(2):
        write(part / "train" / "good" / f"{number:03}.png", seed=number)
    write(part / "test" / "good" / "000.png", seed=7)
    write(part / "test" / "spot" / "000.png", seed=8, defect=True)
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[30:60, 40:70] = 255
    (part / "ground_truth" / "spot").mkdir(parents=True)
    Image.fromarray(mask).save(part / "ground_truth" / "spot" / "000_mask.png")
    return part.parent


def run(*words: str) -> int:
    return main([*words, *MAPS_ONLY])


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a run ends in, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.weights
@pytest.mark.usefixtures("dinov2")
def test_a_tree_is_measured_with_the_real_encoder(tree, tmp_path, capsys):
    assert run("--data", str(tree), "--shots", "2", "--out", str(tmp_path / "out")) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (plate,) = found["classes"]
    assert plate["references"] == ["good/000.png", "good/001.png"]
    assert plate["image_auroc"] == 1 and plate["pixel_auroc"] > 0.9
    assert plate["answer_accuracy"] is None
    assert found["facts"]["command"].startswith("python run_eval.py --data")
    page = (tmp_path / "out" / "results.md").read_text()
    assert page in capsys.readouterr().out and "| plate | 2 | 1 | 100.0 |" in page


@pytest.mark.weights
@pytest.mark.usefixtures("dinov2")
def test_a_users_own_folder_is_measured_without_masks(tree, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    (tree / "plate" / "train" / "good").rename(own / "good")
    (tree / "plate" / "test" / "good").rename(own / "good_test")
    (tree / "plate" / "test" / "spot").rename(own / "spot")
    assert run("--data", str(own), "--kind", "folder", "--shots", "1") == 0
    assert "| own | 2 | 1 | 100.0 | – |" in capsys.readouterr().out


def test_a_wrong_tree_ends_in_one_line(tree, tmp_path, capsys):
    assert "no such folder" in fails(capsys, "--data", str(tmp_path / "absent"))
    assert "one class of an MVTec tree" in fails(capsys, "--data", str(tree / "plate"))
    assert "no class cup" in fails(capsys, "--data", str(tree), "--classes", "cup")


def test_what_cannot_be_measured_ends_in_one_line_before_the_model_is_loaded(tree, tmp_path, capsys):
    assert "need 4 good training photos, there are 2" in fails(capsys, "--data", str(tree), "--shots", "4")
    (tmp_path / "file").write_text("")
    assert "this is a file" in fails(capsys, "--data", str(tree), "--out", str(tmp_path / "file"))


def test_a_negative_number_of_shots_is_refused(tree, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("--data", str(tree), "--shots", "-1")
    assert stopped.value.code == 2 and "expected 0 or more" in capsys.readouterr().err
