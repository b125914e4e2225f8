"""Command lines written for the original, and the one rule for relative paths."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from anomalygpt.config.load import load_config, resolve
from anomalygpt.config.original_flags import original_settings
from anomalygpt.errors import UserError
from anomalygpt.model.build import available
from tests.shared_data import ROOT

# As in an issue of the original's tracker, with other values.
ORIGINAL = (
    *("--model", "openllama_peft", "--stage", "1", "--max_tgt_len", "512"),
    *("--imagebind_ckpt_path", "../pretrained_ckpt/imagebind_ckpt/imagebind_huge.pth"),
    *("--vicuna_ckpt_path", "../pretrained_ckpt/vicuna_ckpt/7b_v0/", "--delta_ckpt_path", "../pretrained_ckpt/x.pt"),
    *("--data_path", "../data/pandagpt4_visual_instruction_data.json", "--image_root_path", "../data/images/"),
    *("--save_path", "./ckpt/train_visa/", "--log_path", "./ckpt/train_visa/log_rest/"),
)


def test_the_originals_flags_become_settings_and_one_line_says_so(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT / "code")
    rest, overrides = original_settings(["--local_rank=0", *ORIGINAL, "--device", "cpu", "seed=7"], "train_mvtec")
    assert rest == ["--config", "train_visa", "--local_rank=0", "--device", "cpu", "seed=7"]
    config = load_config("train_visa", overrides)
    assert resolve(config.encoder.weights) == ROOT / "pretrained_ckpt" / "imagebind_ckpt" / "imagebind_huge.pth"
    assert config.llm is not None and resolve(config.llm.weights) == ROOT / "pretrained_ckpt" / "vicuna_ckpt" / "7b_v0"
    assert config.llm.max_target_tokens == 512
    [delta] = config.deltas
    assert (resolve(delta.path), delta.parts) == (ROOT / "pretrained_ckpt" / "x.pt", ("llama_proj", "lora"))
    assert config.data.instructions is not None
    assert resolve(config.data.instructions.images) == ROOT / "data" / "images"
    assert resolve(config.data.instructions.conversations).name == "pandagpt4_visual_instruction_data.json"
    assert resolve(config.training.output) == ROOT / "code" / "ckpt" / "train_visa"
    assert resolve(config.training.log or "") == ROOT / "code" / "ckpt" / "train_visa" / "log_rest"
    assert config.data.sources[0].kind == "visa"
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "without effect here: --model, --stage" in line and "training.output=" in line


def test_without_such_flags_nothing_changes_and_a_config_that_is_named_stays(capsys) -> None:
    argv = ["--config", "compact", "seed=1"]
    assert original_settings(argv, "train_mvtec") == (argv, [])
    assert capsys.readouterr().err == ""
    rest, overrides = original_settings(["--config=train_mvtec", "--anomalygpt_ckpt_path", "a.pt"], "compact")
    assert rest == ["--config", "train_mvtec"] and "a.pt" in overrides[0]


def test_the_demos_deltas_are_replaced_each_by_its_flag() -> None:
    argv = ["--delta_ckpt_path", "/p.pt", "--anomalygpt_ckpt_path", "/a.pt", "--port", "1"]
    rest, overrides = original_settings(argv, "imagebind_vicuna7b")
    assert rest == ["--config", "imagebind_vicuna7b", "--port", "1"]
    deltas = load_config("imagebind_vicuna7b", overrides).deltas
    expected = [("/p.pt", ("llama_proj", "lora")), ("/a.pt", ("image_decoder", "prompt_learner"))]
    assert [(delta.path, delta.parts) for delta in deltas] == expected


def test_deepspeeds_json_becomes_settings_and_what_is_not_used_is_named(tmp_path: Path, capsys) -> None:
    path = tmp_path / "stage_1.json"
    content = {
        "train_batch_size": 32, "train_micro_batch_size_per_gpu": "auto", "steps_per_print": 1,
        "gradient_clipping": 0.5,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-5, "betas": [0.9, 0.99]}}, "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, "fp16": {"enabled": False},
    }  # fmt: skip
    path.write_text(json.dumps(content, indent="\t"))
    _, overrides = original_settings(["--deepspeed", "--deepspeed_config", str(path)], "train_mvtec")
    settings = load_config("train_mvtec", overrides).training
    assert (settings.batch_size, settings.micro_batch_size, settings.zero_stage) == (32, 1, 1)
    assert (settings.optimizer.lr, settings.optimizer.betas, settings.optimizer.clip_norm) == (1e-5, (0.9, 0.99), 0.5)
    assert (settings.precision, settings.offload_optimizer) == ("bf16", True)
    assert capsys.readouterr().err.rstrip().endswith("without effect here: steps_per_print")
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as DeepSpeed.s JSON"):
        original_settings(["--deepspeed_config", str(path)], "train_mvtec")


def run(*command: str, folder: Path = ROOT / "code", **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)


def test_the_originals_command_runs_unchanged() -> None:
    done = run(sys.executable, "train_mvtec.py", "--local_rank=0", *ORIGINAL, "--dry-run")
    assert done.returncode == 0, done.stderr
    plan = yaml.safe_load(done.stdout)
    assert plan["name"] == "train_mvtec" and plan["llm"]["max_target_tokens"] == 512
    assert "--config train_mvtec" in done.stderr


@pytest.mark.parametrize("installed", [True, False])
def test_training_script_finds_deepspeed_in_the_checkouts_environment(tmp_path: Path, installed: bool) -> None:
    shutil.copytree(ROOT / "code" / "scripts", tmp_path / "code" / "scripts")
    launcher = tmp_path / ".venv" / "bin" / "deepspeed"
    if installed:
        launcher.parent.mkdir(parents=True)
        launcher.write_text('#!/bin/sh\necho "DeepSpeed: $@"\n')
        launcher.chmod(0o755)
    script = str(tmp_path / "code" / "scripts" / "train_mvtec.sh")
    done = run("bash", script, "--dry-run", folder=tmp_path, PATH="/usr/bin:/bin")
    if not Path("/dev/nvidia0").exists() and installed:
        assert "bash scripts/train_compact.sh trains the compact model on a CPU" in done.stderr.splitlines()[0]
    assert (done.returncode, "make setup" in done.stderr) == ((0, False) if installed else (2, True))
    assert ("DeepSpeed: train.py --config train_mvtec --dry-run" in done.stdout) == installed


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The current folder, a checkout's ``code``, and the checkout, which has a folder of runs and ``parts``."""
    here, home = tmp_path / "checkout" / "code", tmp_path / "checkout"
    for folder in (here, home / "runs", home / "parts", tmp_path / "mine"):
        folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("ANOMALYGPT_HOME", str(home))
    monkeypatch.chdir(here)
    return here, home


@pytest.mark.parametrize("typed", ["override", "file"])
def test_typed_paths_start_at_the_current_folder_then_at_the_repository(places, tmp_path: Path, typed: str) -> None:
    here, home = places
    (tmp_path / "checkout" / "my_parts").mkdir()
    (here / "llm").mkdir()
    values = {
        "data": {"sources": [{"kind": "folder", "root": path} for path in ("../my_parts", "parts", "nowhere")]},
        "llm": {"weights": "llm"},
        "training": {"output": "new", "log": "runs/log"},
    }
    overrides = [f"{part}.{key}={json.dumps(value)}" for part, keys in values.items() for key, value in keys.items()]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "compact", **values}))
    config = load_config("compact", overrides) if typed == "override" else load_config(path)
    roots = [resolve(source.root) for source in config.data.sources]
    assert roots == [home / "my_parts", home / "parts", home / "nowhere"]
    assert config.llm is not None and resolve(config.llm.weights) == here / "llm"
    assert resolve(config.training.output) == here / "new", "made in the current folder"
    assert resolve(config.training.log or "") == home / "runs" / "log", "code/ has no folder of runs"


def test_shipped_paths_start_at_the_repository_even_where_the_current_folder_has_them(places) -> None:
    here, home = places
    (here / "pretrained_ckpt").mkdir()
    (here / "runs" / "train_mvtec").mkdir(parents=True)
    assert resolve(load_config("train_mvtec").training.output) == home / "runs" / "train_mvtec"


def test_error_about_an_absent_path_names_both_places(places) -> None:
    here, home = places
    with pytest.raises(UserError) as error:
        available(load_config("compact", ["encoder.weights=elsewhere/x.pt"]).encoder.weights, "encoder.weights")
    assert str(home / "elsewhere" / "x.pt") in str(error.value) and f"nor is {here}/elsewhere/x.pt" in str(error.value)
    with pytest.raises(UserError) as error:
        available(load_config("imagebind_vicuna7b").encoder.weights, "encoder.weights")
    assert "nor is" not in str(error.value), "shipped paths start at the repository's root"


def test_name_on_the_hub_is_taken_for_a_folder_only_where_there_is_none(places, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"owner/model: no such folder, and not available from the hub"):
        available("owner/model", "llm.weights")
    with pytest.raises(UserError, match="not there"):
        available("runs/model", "llm.weights")
