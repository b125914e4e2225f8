"""Real runs of ``train.py``: alone, on two processes, stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from anomalygpt.files import claimed
from anomalygpt.model.checkpoint import PARTS, file_shapes, part_of, read_metadata, read_tensors
from anomalygpt.train import _draw_curves, main
from anomalygpt.training.checkpoints import complete_checkpoints
from anomalygpt.training.metrics_log import read_metrics
from tests import processes
from tests.shared_data import ROOT


def command_line(experiment, *settings: str, launcher: tuple[str, ...] = (sys.executable,)) -> tuple[list[str], dict]:
    command = [*launcher, "train.py", "--config", str(experiment.config), "--device", "cpu", *settings]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return command, {"cwd": ROOT / "code", "env": environment}


def train(experiment, *settings: str, **launch: tuple[str, ...]) -> subprocess.CompletedProcess:
    command, options = command_line(experiment, *settings, **launch)
    return processes.run(command, timeout=280, **options)


def ok(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def numbers(folder: Path, kind: str = "train") -> list[dict]:
    return [line for line in read_metrics(folder) if line["kind"] == kind]


def losses(folder: Path) -> dict[int, tuple[float, ...]]:
    return {line["step"]: (line["answer"], line["focal"], line["dice"], line["lr"]) for line in numbers(folder)}


@pytest.fixture(scope="module")
def finished(experiment) -> Path:
    folder = experiment.runs / "whole"
    ok(train(experiment, f"training.output={folder}"))
    return folder


def test_a_run_leaves_a_delta_with_its_config_inside(finished):
    delta = finished / "model.safetensors"
    names = file_shapes(delta)
    assert {part_of(name) for name in names} == set(PARTS)
    assert yaml.safe_load(read_metadata(delta)["config"])["name"] == "tiny"
    assert file_shapes(finished / "pytorch_model.pt") == names


def test_a_run_records_what_it_takes_to_repeat_it(finished):
    assert yaml.safe_load((finished / "config.yaml").read_text())["seed"] == 42
    assert json.loads((finished / "environment.json").read_text())["packages"]["torch"]


def test_a_run_validates_on_held_back_photos_and_shows_what_it_sees(finished):
    [validation] = numbers(finished, "validation")
    assert validation["step"] == 4
    assert validation["total"] > 0
    assert (finished / "best.safetensors").is_file()
    assert (finished / "samples" / "step0000004.png").is_file()
    assert (finished / "curves.png").is_file()


# Runs train.py, which gets a signal as soon as it has logged a step: argv is step, signal, "train.py" and its own.
# From outside the signal could come after the last step.
INTERRUPTED = """
import os, sys
from anomalygpt import train
from anomalygpt.training.metrics_log import MetricsLog

write = MetricsLog.write

def write_and_stop(self, kind, step, **values):
    write(self, kind, step, **values)
    if (kind, step) == ("train", int(sys.argv[1])):
        os.kill(os.getpid(), int(sys.argv[2]))

MetricsLog.write = write_and_stop
sys.exit(train.main(sys.argv[4:]))
"""


def stop_after(experiment, folder: Path, step: int, number: signal.Signals) -> tuple[int, str]:
    """A run that gets a signal once it has logged a step; its exit code and what it said."""
    launcher = (sys.executable, "-c", INTERRUPTED, str(step), str(int(number)))
    done = train(experiment, f"training.output={folder}", launcher=launcher)
    return done.returncode, done.stderr


def test_a_run_that_is_stopped_and_killed_ends_with_the_losses_of_an_uninterrupted_one(experiment, finished):
    folder = experiment.runs / "killed"
    code, said = stop_after(experiment, folder, 1, signal.SIGTERM)
    assert code == 2, said
    assert sorted(losses(folder)) == [1]
    assert "start the same command again to go on" in said
    code, said = stop_after(experiment, folder, 3, signal.SIGKILL)
    assert code == -signal.SIGKILL, said
    assert sorted(losses(folder)) == [1, 2, 3]
    assert "resumed" in said
    assert "resumed" in ok(train(experiment, f"training.output={folder}")).stderr
    assert losses(folder) == losses(finished)
    ours, theirs = (read_tensors(run / "model.safetensors") for run in (folder, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resume_that_is_refused_leaves_the_runs_own_settings_where_they_are(experiment, finished):
    files = [finished / name for name in ("config.yaml", "environment.json", "metrics.jsonl")]
    before = [path.read_bytes() for path in files]
    refused = train(experiment, f"training.output={finished}", "seed=43")
    assert refused.returncode == 2, refused.stderr[-2000:]
    assert "step0000004 was written with seed 42, here 43. Take the run up as it was (its config.yaml" in refused.stderr
    assert [path.read_bytes() for path in files] == before


def test_a_second_run_into_a_folder_in_use_is_refused(experiment, finished):
    with claimed(finished, "training.output"):
        done = train(experiment, f"training.output={finished}")
    assert done.returncode == 2
    assert f"error: {finished}: another run is writing there" in done.stderr
    assert "Traceback" not in done.stderr


def test_curves_that_could_not_be_drawn_do_not_spoil_a_finished_run(tmp_path, caplog):
    (tmp_path / "curves.png").mkdir()
    _draw_curves(tmp_path)
    assert "the curves could not be drawn" in caplog.text


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    for step, whole in ((1, True), (2, True), (3, False)):
        target = tmp_path / "checkpoints" / f"step{step:07d}"
        target.mkdir(parents=True)
        if whole:
            (target / "whole").touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step0000001", "step0000002"]


def test_instruction_steps_alternate_with_anomaly_steps(experiment, finished):
    root = experiment.config.parent
    entries = [
        {
            "image_name": f"{number:03}.png",
            "conversation": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A disc."}],
        }
        for number in range(4)
    ]
    (root / "talk.json").write_text(json.dumps(entries))
    folder = experiment.runs / "talk"
    source = f"data.instructions={{conversations: {root}/talk.json, images: {root}/data/disc/train/good}}"
    ok(train(experiment, f"training.output={folder}", "training.steps=2", source))
    lines = numbers(folder)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["instruction"] > 0 for line in lines)
    assert lines[0]["focal"] == numbers(finished)[0]["focal"]  # the map's losses come from the anomaly steps alone


def test_two_processes_train_and_agree_on_one_delta(experiment):
    folder = experiment.runs / "two"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    ok(train(experiment, f"training.output={folder}", "training.zero_stage=2", launcher=launcher))
    assert sorted(losses(folder)) == [1, 2, 3, 4]
    assert (folder / "model.safetensors").is_file()


def test_the_deepspeed_launcher_starts_it(experiment):
    folder = experiment.runs / "launched"
    launcher = (str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2")
    ok(train(experiment, f"training.output={folder}", launcher=launcher))
    assert sorted(losses(folder)) == [1, 2, 3, 4]


def test_a_wrong_setting_is_one_line(experiment):
    done = train(experiment, "training.optimiser.lr=1")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith("did you mean 'optimizer'?")
    assert "Traceback" not in done.stderr


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command ends in, with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_a_delta_that_is_not_there_is_told_with_what_to_do(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    config = ["--config", str(experiment.config), "--set"]

    def told(path: str, part: str = "states") -> str:
        return refused(capsys, *config, f"deltas=[{{path: {path}, parts: [{part}]}}]")

    assert "python train.py --config train_compact_1_map" in told("runs/train_compact_1_map/model.safetensors")
    assert told("typo.safetensors", "lora").endswith("typo.safetensors: not there. The setting deltas names it\n")
    assert "this is a folder" in told(".")


def test_settings_come_bare_and_after_set(experiment, capsys):
    words = ["seed=5", "training.steps=7", "--set", "training.steps=8", "training.epochs=2", "--dry-run"]
    assert main(["--config", str(experiment.config), *words, "--set", "name=other"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["name"]) == (5, "other")
    assert (printed["training"]["steps"], printed["training"]["epochs"]) == (8, 2)


def test_dry_run_prints_the_resolved_config(experiment):
    done = ok(train(experiment, "--dry-run", "training.steps=7"))
    assert yaml.safe_load(done.stdout)["training"]["steps"] == 7
