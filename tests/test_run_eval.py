"""The entry point: from a tree of photos to tables and pictures, on one process or two, and mistakes to one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from anomalygpt.run_eval import main
from anomalygpt.run_mmad import main as mmad
from tests.evaluation.conftest import write_class, write_photo
from tests.helpers import write_encoder, write_llm

ROOT = Path(__file__).resolve().parents[1]
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
MAPS_ONLY = ["--config", "compact", "--device", "cpu", "--no-chat", "--set", "deltas=[]"]


@pytest.fixture
def dinov2() -> None:
    if not (ROOT / "pretrained_ckpt" / "dinov2_vits14" / "model.safetensors").is_file():
        pytest.skip("needs pretrained_ckpt/dinov2_vits14 (python fetch_weights.py)")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One class of one good and one defective test photo."""
    write_class(tmp_path / "tree" / "plate", 2, 1)
    return tmp_path / "tree"


def run(*words: str) -> None:
    main([*words, *MAPS_ONLY])


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
    out = tmp_path / "out"
    run("--data", str(tree), "--shots", "2", "--out", str(out))
    found = json.loads((out / "results.json").read_text())
    [protocol] = found["protocols"]
    [plate] = protocol["classes"]
    assert plate["rounds"][0]["references"] == ["plate/train/good/000.png", "plate/train/good/001.png"]
    assert plate["mean"]["image_auroc"] == 1 and plate["mean"]["pixel_auroc"] > 0.9 and plate["mean"]["aupro"] > 0.8
    assert plate["mean"]["answer_accuracy"] is None
    assert found["facts"]["command"].startswith("python run_eval.py --data")
    page = (out / "results.md").read_text()
    assert page in capsys.readouterr().out and "| plate | 2 | 1 | 100.0 |" in page
    assert "Beside published" not in page, "these are not the official photos"
    pictures = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert pictures == {"cases_2-shot/plate.png"}
    assert (out / "per_class.csv").is_file()


@pytest.mark.weights
@pytest.mark.usefixtures("dinov2")
def test_a_finished_run_grows_by_shots_and_refuses_other_settings(tree, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "out")
    run("--data", str(tree), "--shots", "1", "--out", out, "--no-pictures")
    from anomalygpt.inference.predictor import Predictor

    inspected = []
    inspect = Predictor.inspect_batch
    monkeypatch.setattr(Predictor, "inspect_batch", lambda *given: (inspected.extend(given[1]), inspect(*given))[1])
    run("--data", str(tree), "--shots", "1", "2", "--out", out, "--no-pictures")
    assert len(inspected) == 2, "the photos of the first shot are measured"
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [protocol["shots"] for protocol in found["protocols"]] == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "from_config", None)  # nothing is left to measure, so no model is built
        run("--data", str(tree), "--shots", "2", "--out", out, "--no-pictures")
    capsys.readouterr()
    again = ("--data", str(tree), "--shots", "1", "--out", out)
    assert 'another --reference-choice ("paper", now "random")' in fails(capsys, *again, "--reference-choice", "random")
    assert "another inference.geometry" in fails(capsys, *again, "--set", "inference.geometry=official")
    (tree / "plate" / "test" / "good" / "000.png").rename(tree / "plate" / "test" / "good" / "001.png")
    run(*again, "--no-pictures")
    assert len(inspected) == 2 + 2, "a class with other photos is measured anew"


@pytest.mark.weights
@pytest.mark.usefixtures("dinov2")
def test_a_users_own_folder_is_measured_without_masks(tree, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    (tree / "plate" / "train" / "good").rename(own / "good")
    (tree / "plate" / "test" / "good").rename(own / "good_test")
    (tree / "plate" / "test" / "hole").rename(own / "hole")
    run("--data", str(own), "--kind", "folder", "--shots", "1")
    page = capsys.readouterr().out
    assert "| own | 2 | 1 | 100.0 | 100.0 | 100.0 |\n" in page and "pixel_auroc" not in page


@pytest.mark.weights
@pytest.mark.usefixtures("dinov2")
def test_two_folders_are_measured_and_the_table_of_what_was_found_is_printed(tree, tmp_path, capsys):
    plate = tree / "plate"
    words = ["--good", str(plate / "train" / "good"), "--bad", str(plate / "test" / "hole"), "--shots", "1"]
    masks = ["--masks", str(plate / "ground_truth" / "hole")]
    run(*words, *masks, "--out", str(tmp_path / "out"), "--no-pictures")
    captured = capsys.readouterr()
    for line in ("train  train  good  1", "train  test   good  1", "train  test   hole  1       1      binary 0/255"):
        assert f"{line}\n" in captured.err
    assert "| plate | 2 | 1 |" not in captured.out and "| train | 2 | 1 |" in captured.out
    assert "masks read as binary 0/255\n" in captured.out


@pytest.mark.parametrize("words", [(), ("--good", "x"), ("--data", "x", "--bad", "x"), ("--masks", "x", "--bad", "y")])
def test_photos_are_named_in_one_way(words, capsys):
    assert "by --data ROOT, or by --good DIR and --bad DIR" in fails(capsys, *words)


def test_strict_reading_makes_a_warning_an_error(tree, capsys):
    write_photo(tree / "plate" / "other" / "0.png", seed=1)
    assert "other: photos that are not read" in fails(capsys, "--data", str(tree), "--strict")


def test_a_wrong_tree_ends_in_one_line(tree, tmp_path, capsys):
    assert "no such folder" in fails(capsys, "--data", str(tmp_path / "absent"))
    assert "no class cup" in fails(capsys, "--data", str(tree), "--classes", "cup")
    assert "no such file" in fails(capsys, "--data", str(tmp_path / "absent.csv"), "--kind", "csv")


def test_what_cannot_be_measured_ends_in_one_line_before_the_model_is_loaded(tree, tmp_path, capsys):
    assert "need 4 good training photos, there are 2" in fails(capsys, "--data", str(tree), "--shots", "4")
    assert "need 5 good" in fails(capsys, "--data", str(tree), "--shots", "1", "--rounds", "2")
    (tmp_path / "file").write_text("")
    assert "can't be made" in fails(capsys, "--data", str(tree), "--out", str(tmp_path / "file"))
    assert "can't be made" in fails(capsys, "--data", str(tree), "--out", str(tmp_path / "file" / "below"))
    (tree / "plate" / "test" / "good" / "000.png").unlink()
    (tree / "plate" / "test" / "hole" / "000.png").unlink()
    (tree / "plate" / "ground_truth" / "hole" / "000_mask.png").unlink()
    assert "no test photos of plate" in fails(capsys, "--data", str(tree))


def test_a_choice_of_references_without_references_is_refused_in_one_line(tree, capsys):
    for words in (("--rounds", "2"), ("--reference-choice", "random", "--shots", "0")):
        assert "there are none; add --shots K" in fails(capsys, "--data", str(tree), *words)


def test_questions_that_cannot_be_asked_end_in_one_line(tmp_path, capsys):
    def asks(*words: str) -> str:
        with pytest.raises(SystemExit):
            mmad(["--config", "compact", "--device", "cpu", "--questions", str(tmp_path / "x.json"), *words])
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        return captured.err

    assert "no such file" in asks()
    assert "need a language model" in asks("--set", "llm=null", "deltas=[]")


def test_a_full_disk_and_ctrl_c_end_in_one_line(tree, tmp_path, capsys, monkeypatch):
    from anomalygpt.evaluation import cells

    words = ("--data", str(tree), "--out", str(tmp_path / "out"))
    monkeypatch.setattr(cells, "_require", Mock(side_effect=OSError(28, "No space left on device")))
    assert "can't be written (No space left on device)" in fails(capsys, *words)
    monkeypatch.setattr(cells, "_require", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 130
    assert "the same command continues the run" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "says"), [(("--shots", "-1"), "0 or more"), (("--rounds", "0"), "1 or more")])
def test_numbers_out_of_range_are_refused(tree, capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        run("--data", str(tree), *words)
    assert stopped.value.code == 2 and says in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config of random encoder and tiny language model, whose answers are sampled, and two classes to measure."""
    root = tmp_path_factory.mktemp("small")
    write_encoder(root / "encoder.safetensors")
    write_llm(root / "llm")
    for name in ("disc", "plate"):
        write_class(root / "data" / name, 2, 3)
    generation = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    settings = {
        "base": "compact",
        "name": "small",
        "deltas": [],
        "encoder": {"weights": str(root / "encoder.safetensors")},
        "llm": {"weights": str(root / "llm"), "lora": {"rank": 2}, "generation": generation},
        "inference": {"findings": "none"},
    }
    (root / "small.yaml").write_text(yaml.safe_dump(settings))
    return root / "small.yaml", root / "data"


def start(*words: str, code: int = 0) -> None:
    """Runs Python in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    options = {"capture_output": True, "text": True, "timeout": 600, "cwd": ROOT / "code", "env": environment}
    done = subprocess.run([sys.executable, *words], check=False, **options)
    assert done.returncode == code, done.stderr[-3000:]


def evaluate(small: tuple[Path, Path], out: Path, *launcher: str) -> dict:
    """Runs the command; results.json without what is about the run."""
    config, data = small
    words = ["--config", str(config), "--device", "cpu", "--data", str(data), "--shots", "0", "1", "--out", str(out)]
    start(*launcher, "run_eval.py", *words, "--no-pictures")
    found = json.loads((out / "results.json").read_text())
    assert found.pop("facts")["processes"] == (2 if launcher else 1)
    assert all(each.pop("seconds") > 0 for p in found["protocols"] for c in p["classes"] for each in c["rounds"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_and_a_killed_run_that_goes_on_give_what_one_gives_to_the_last_digit(small, tmp_path):
    alone = evaluate(small, tmp_path / "alone")
    assert evaluate(small, tmp_path / "two", *TWO_PROCESSES) == alone
    texts = [photo["answer"] for p in alone["protocols"] for c in p["classes"] for photo in c["rounds"][0]["photos"]]
    assert len(set(texts)) > len(texts) / 2, "answers are sampled, photo by photo"
    config, data = small
    out = tmp_path / "killed"
    script = (
        "import os, signal, sys\n"
        "from anomalygpt.evaluation.evaluate import Evaluator\n"
        "measure = Evaluator.measure\n"
        "def measure_or_die(self, cell, on_photo):\n"
        "    if cell.shots: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return measure(self, cell, on_photo)\n"
        "Evaluator.measure = measure_or_die\n"
        "from anomalygpt.run_eval import main\n"
        "main(sys.argv[1:])\n"
    )
    words = ["--config", str(config), "--device", "cpu", "--data", str(data), "--shots", "0", "1", "--out", str(out)]
    start("-c", script, *words, code=-9)
    assert sorted(path.name for path in (out / "state" / "0_shot_round_0").iterdir()) == ["disc.json", "plate.json"]
    assert not (out / "state" / "1_shot_round_0").exists()
    assert evaluate(small, out) == alone


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_multiple_choice_gives_the_same_on_two_processes(small, tmp_path):
    config, data = small
    options = {"A": "Yes, there is a spot.", "B": "No, it is clean."}
    # More photos than a cell has: the same ones by other paths.
    entries = [
        {"image": f"{way}plate/test/{kind}/{number:03}.png", "question": "Dirty?", "options": options, "answer": right}
        for kind, right in (("hole", "A"), ("good", "B"))
        for number in range(3)
        for way in ("", "./", "././", "./././")
    ]
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    command = ["run_mmad.py", "--config", str(config), "--device", "cpu", "--data", str(data)]
    command += ["--questions", str(tmp_path / "questions.json")]
    found = []
    for launcher in ((), TWO_PROCESSES):
        out = tmp_path / f"out{len(found)}"
        start(*launcher, *command, "--out", str(out))
        found.append(json.loads((out / "results.json").read_text()))
        found[-1].pop("facts")
    assert found[0] == found[1]
    assert len(found[0]["answers"]) == 24
