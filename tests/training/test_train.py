"""Real runs of ``train.py``: alone, on two processes, stopped and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from PIL import Image

from anomalygpt.files import claimed, read_lines
from anomalygpt.model.checkpoint import PARTS, part_of, read_metadata, read_tensors, shapes_of
from anomalygpt.train import main
from anomalygpt.training.checkpoints import complete_checkpoints
from anomalygpt.training.metrics_log import FILE
from tests import processes
from tests.helpers import tiny_llama
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
    return [line for line in read_lines(folder / FILE) if line["kind"] == kind]


def losses(folder: Path) -> dict[int, tuple[float, ...]]:
    return {line["step"]: (line["answer"], line["focal"], line["dice"], line["lr"]) for line in numbers(folder)}


@pytest.fixture(scope="module")
def finished(experiment) -> Path:
    folder = experiment.runs / "whole"
    ok(train(experiment, f"training.output={folder}"))
    return folder


def test_a_frozen_base_of_4_bit_is_trained_through(experiment):
    pytest.importorskip("bitsandbytes")
    folder, llm = experiment.runs / "four_bit", experiment.runs / "llm_64"  # rows are quantized by 64 numbers
    shutil.copytree(experiment.config.parent / "llm", llm)
    rows = json.loads((llm / "config.json").read_text())["vocab_size"]
    tiny_llama(rows=rows, width=64, intermediate_size=64, bos_token_id=0, eos_token_id=1).save_pretrained(llm)
    settings = ["llm.precision=4bit", f"llm.weights={llm}", "training.validate_every=1", "training.steps=2"]
    warmup = ["training.optimizer.warmup_share=0", "training.optimizer.min_warmup_steps=0"]
    ok(train(experiment, f"training.output={folder}", *settings, *warmup))
    assert all(0 < line["answer"] < 20 for line in numbers(folder)) and len(numbers(folder)) == 2
    tensors = read_tensors(folder / "model.safetensors")
    lora = [value for name, value in tensors.items() if "lora_B" in name]
    assert lora and all(value.any() for value in lora), "they start at zero"
    assert {part_of(name) for name in tensors} == set(PARTS)


def test_a_run_leaves_a_delta_with_its_config_inside(finished):
    delta = finished / "model.safetensors"
    names = shapes_of(read_tensors(delta))
    assert {part_of(name) for name in names} == set(PARTS)
    assert yaml.safe_load(read_metadata(delta)["config"])["name"] == "tiny"
    assert shapes_of(read_tensors(finished / "pytorch_model.pt")) == names
    assert yaml.safe_load((finished / "config.yaml").read_text())["seed"] == 42
    assert json.loads((finished / "environment.json").read_text())["packages"]["torch"]


def test_a_run_validates_on_held_back_photos_and_draws_pictures(finished):
    [validation] = numbers(finished, "validation")
    assert validation["step"] == 4
    assert validation["total"] > 0
    assert (finished / "best.safetensors").is_file()
    with Image.open(finished / "curves.png") as curves:
        colours = {colour for _, colour in curves.convert("RGB").getcolors(2**24)}
    assert {(31, 119, 180), (255, 127, 14)} <= colours, "training and validation"
    with Image.open(finished / "samples" / "step0000004.png") as sheet:
        assert sheet.width > 3 * 224, "photo, target and map"
    assert "anomaly" in (finished / "samples" / "step0000004.txt").read_text(encoding="utf-8")


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


def test_a_run_that_is_stopped_and_killed_ends_with_the_losses_of_an_uninterrupted_one(experiment, finished):
    folder = experiment.runs / "killed"
    stops = [(1, signal.SIGTERM, 2, "start the same command again to go on"), (3, signal.SIGKILL, -9, "resumed")]
    for step, number, code, words in stops:
        launcher = (sys.executable, "-c", INTERRUPTED, str(step), str(int(number)))
        done = train(experiment, f"training.output={folder}", launcher=launcher)
        assert done.returncode == code, done.stderr
        assert sorted(losses(folder)) == [*range(1, step + 1)]
        assert words in done.stderr
    assert "resumed" in ok(train(experiment, f"training.output={folder}")).stderr
    assert losses(folder) == losses(finished)
    ours, theirs = (read_tensors(run / "model.safetensors") for run in (folder, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_findings_train_lora_alone_without_photos_and_a_stopped_run_resumes_to_the_same_bits(words):
    whole, stopped = (words.runs / name for name in ("words_whole", "words_stopped"))
    plain = ok(train(words, f"training.output={whole}"))
    assert "10 training samples, 4 steps of 2" in plain.stderr
    assert {part_of(name) for name in read_tensors(whole / "model.safetensors")} == {"lora"}
    assert [line["focal"] for line in numbers(whole)] == [0] * 4
    [validation] = numbers(whole, "validation")
    assert validation["answer"] > 0 and "verdict_accuracy" not in validation
    assert not (whole / "samples").exists()
    # The stop lies in the middle of an epoch of five steps, and the loader is another.
    launcher = (sys.executable, "-c", INTERRUPTED, "3", str(int(signal.SIGTERM)))
    assert train(words, f"training.output={stopped}", launcher=launcher).returncode == 2
    assert "resumed" in ok(train(words, f"training.output={stopped}", "data.workers=1")).stderr
    assert losses(stopped) == losses(whole)
    ours, theirs = (read_tensors(run / "model.safetensors") for run in (stopped, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_refused_resume_leaves_the_folder_as_it_was(experiment, finished):
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


def test_instruction_steps_alternate_with_anomaly_steps(experiment, finished):
    root = experiment.config.parent
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A disc."}]
    entries = [{"image_name": f"{number:03}.png", "conversation": turns} for number in range(4)]
    (root / "instructions.json").write_text(json.dumps(entries))
    folder = experiment.runs / "instructions"
    source = f"data.instructions={{conversations: {root}/instructions.json, images: {root}/data/disc/train/good}}"
    ok(train(experiment, f"training.output={folder}", "training.steps=2", source))
    lines = numbers(folder)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["instruction"] > 0 for line in lines)
    assert lines[0]["focal"] == numbers(finished)[0]["focal"]  # the map's losses come from the anomaly steps alone


LAUNCHERS = {
    "torchrun": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    "deepspeed": (str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_and_export_one_delta(experiment, launcher):
    folder = experiment.runs / launcher
    settings = (f"training.output={folder}", "training.zero_stage=2")
    ok(train(experiment, *settings, launcher=LAUNCHERS[launcher]))
    assert sorted(losses(folder)) == [1, 2, 3, 4]
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.optimiser.lr=1", "did you mean 'optimizer'?"),
        ("training.precision=fp16", "needs a GPU; training.precision=fp32 trains on this CPU"),
    ],
)
def test_a_wrong_setting_is_one_line(experiment, setting, words):
    done = train(experiment, setting)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].endswith(words)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runs/train_compact_1_map/model.safetensors", "python train.py --config train_compact_1_map"),
        ("typo.safetensors", "or name another (deltas)\n"),
        (".", "this is a folder"),
    ],
)
def test_a_missing_delta_is_one_line_with_the_remedy(experiment, tmp_path, capsys, monkeypatch, path, words):
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(experiment.config), "--set", f"deltas=[{{path: {path}, parts: [states]}}]"])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors


@pytest.mark.parametrize(
    "other", [["inference.findings=system"], ["llm.endpoint=http://localhost:1/v1", "llm.model=any"]]
)
def test_language_model_that_is_used_as_it_is_can_not_be_trained(experiment, capsys, other):
    for options in ([], ["--dry-run"]):
        with pytest.raises(SystemExit):
            main(["--config", str(experiment.config), *options, *other])
        [line] = capsys.readouterr().err.strip().splitlines()
        assert "can't be trained; training.answers=false trains maps alone" in line
    maps = ["training.answers=false", "training.trainable=[image_decoder]"]
    assert main(["--config", str(experiment.config), "--dry-run", *other, *maps]) == 0
    assert "image_decoder, trained" in capsys.readouterr().out


def test_settings_come_bare_and_after_set(experiment, capsys):
    words = ["seed=5", "training.steps=7", "--set", "training.steps=8", "training.epochs=2", "--dry-run"]
    assert main(["--config", str(experiment.config), *words, "--set", "name=other"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["name"]) == (5, "other")
    assert (printed["training"]["steps"], printed["training"]["epochs"]) == (8, 2)


@pytest.mark.slow
def test_a_rate_that_breaks_the_weights_stops_the_run_and_leaves_no_model(experiment):
    folder = experiment.runs / "broken"
    rate = ("training.optimizer.lr=1e30", "training.optimizer.warmup_share=0", "training.optimizer.min_warmup_steps=0")
    done = train(experiment, f"training.output={folder}", *rate, "training.steps=6", "training.save_every=1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is not a finite number" in done.stderr and "the last checkpoint stays" in done.stderr
    assert not (folder / "model.safetensors").exists()


@pytest.mark.slow
def test_without_warm_up_the_first_step_has_the_full_rate(experiment):
    folder = experiment.runs / "cold"
    none = ("training.optimizer.warmup_share=0", "training.optimizer.min_warmup_steps=0")
    ok(train(experiment, f"training.output={folder}", *none))
    rates = [line["lr"] for line in numbers(folder)]
    assert rates == pytest.approx([5e-4 * left for left in (0.75, 0.5, 0.25, 0)], abs=1e-6)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_with_one_line(experiment):
    folder = experiment.runs / "lost"
    command, options = command_line(
        experiment, f"training.output={folder}", "training.steps=500", launcher=LAUNCHERS["torchrun"]
    )
    with processes.started(command, stderr=subprocess.PIPE, text=True, **options) as run:
        processes.wait_until(lambda: len(numbers(folder)) > 1, 120)
        psutil.Process(run.pid).children()[-1].kill()
        begun = time.monotonic()
        _, errors = run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - begun < 60
    assert "error: another process of this run was lost" in errors


# Runs train.py; rank 1 is killed when it has written its files of the checkpoint at step 4, before the marker.
LOST_IN_SAVE = """
import os, signal, sys
from anomalygpt import train

saved = []

def sync_or_die():
    saved.append(1)
    if os.environ["RANK"] == "1" and len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

os.sync = sync_or_die
sys.exit(train.main())
"""


@pytest.mark.slow
def test_a_process_lost_in_the_middle_of_a_save_leaves_the_checkpoint_before(experiment, tmp_path):
    folder, script = experiment.runs / "lost_in_save", tmp_path / "lost_in_save.py"
    script.write_text(LOST_IN_SAVE)
    command, options = command_line(
        experiment, f"training.output={folder}", "training.steps=500", launcher=LAUNCHERS["torchrun"]
    )
    command = [str(script) if part == "train.py" else part for part in command]
    options["env"] |= {"PYTHONPATH": str(ROOT / "code")}  # the script lies elsewhere
    with processes.started(command, stderr=subprocess.PIPE, text=True, **options) as run:
        processes.wait_until(lambda: (folder / "checkpoints" / "step0000004").exists(), 120)
        of_run = psutil.Process(run.pid).children(recursive=True)
        begun = time.monotonic()
        _, errors = run.communicate(timeout=60)
    assert run.returncode != 0 and time.monotonic() - begun < 60
    assert "error: another process of this run was lost" in errors
    assert [path.name for path in complete_checkpoints(folder)] == ["step0000002"]
    assert not psutil.wait_procs(of_run, timeout=10)[1], "processes are left behind"


@pytest.mark.slow
def test_a_new_run_starts_from_the_tensors_of_an_old_one(experiment, finished):
    folder, old = experiment.runs / "from_old", finished / "model.safetensors"
    still = ("training.steps=1", "training.optimizer.lr=1e-12")
    start = f"deltas=[{{path: {old}, parts: [{', '.join(PARTS)}]}}]"
    ok(train(experiment, f"training.output={folder}", start, *still))
    begun, ended = read_tensors(folder / "model.safetensors"), read_tensors(old)
    assert begun.keys() == ended.keys()
    assert all(torch.equal(begun[name], ended[name]) for name in ended)
