"""What ``--dry-run`` prints, with and without weights and data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from anomalygpt.config.load import load_config
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError
from anomalygpt.model.build import META, build_model, image_spec, trainable_parts
from anomalygpt.training.dry_run import GIB, demo_memory, describe, estimate_memory, planned_model
from tests.shared_data import ROOT

SCRIPTS = ("train_mvtec", "train_visa", "train_supervised", "train_all_supervised_cn")


def line(plan: list[str], start: str) -> str:
    [found] = [text for text in plan if text.strip().startswith(start)]
    return found


@pytest.fixture
def nothing_there(tmp_path, monkeypatch) -> Path:
    """An empty folder: neither weights nor data."""
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_plan_needs_neither_weights_nor_data_and_lists_what_is_unknown(nothing_there, name):
    plan = describe(load_config(name), processes=2)
    assert line(plan, "all trained").split()[-1] == "112,663,480"
    assert line(plan, "training pairs").endswith("unknown")
    assert line(plan, "steps:").endswith("unknown")
    assert "accumulation 8 x 2 process(es), each followed by one of instructions" in line(plan, "batch 16")
    assert "fits 24 GiB" in line(plan, "each GPU")
    absent = plan[plan.index("not known here") :]
    assert any("imagebind_huge.pth: not there yet" in text for text in absent)
    assert any("taken to be LLaMA-7B" in text for text in absent)
    assert any(text.strip().startswith("data.sources: ") and "not there" in text for text in absent)


def test_without_the_language_models_size_nothing_is_planned(nothing_there):
    with pytest.raises(UserError, match=r"somewhere/else: no config\.json there, .* nothing can be planned without it"):
        describe(load_config("train_mvtec", ["llm.weights=somewhere/else"]), processes=1)


def test_pairs_and_steps_are_counted_where_the_data_are(experiment):
    plan = describe(load_config(experiment.config, ["training.epochs=3", "training.steps=null"]), processes=1)
    # Six photos of each class, of which one is held back.
    assert [line(plan, name).split()[-1] for name in ("bar", "disc")] == ["5", "5"]
    assert line(plan, "training pairs").split()[-1] == "10"
    assert line(plan, "held-back pairs").split()[-1] == "2"
    assert "in all: 15 steps, 3.0 epochs" in line(plan, "in all")


def test_a_plan_of_findings_counts_conversations_and_needs_no_photos(words):
    plan = describe(load_config(words.config), processes=2)
    assert line(plan, "training conversations").split()[-1] == "10"
    assert line(plan, "held-back conversations").split()[-1] == "2"
    assert "batch 2 samples = micro-batch 1 x accumulation 1 x 2" in line(plan, "batch 2")
    assert "in all: 4 steps, 0.8 epochs" in line(plan, "in all")
    assert "not known here" not in plan


def test_a_tree_that_is_there_but_wrong_is_an_error(experiment, tmp_path):
    root = experiment.config.parent / "data"
    photo = next(root.rglob("*.png"))
    for source, words in ((f"root: {root}, classes: [disk]", "no class disk"), (f"root: {photo}", "this is a file")):
        config = load_config(experiment.config, [f"data.sources=[{{kind: mvtec, {source}}}]"])
        with pytest.raises(DatasetError, match=words):
            describe(config, processes=1)


def test_an_absent_tree_beside_a_right_one_is_listed_and_nothing_counted(experiment):
    right = f"{{kind: mvtec, root: {experiment.config.parent / 'data'}}}"
    plan = describe(load_config(experiment.config, [f"data.sources=[{right}, {{kind: csv, root: no.csv}}]"]), 1)
    assert line(plan, "training pairs").endswith("unknown")
    assert "no.csv: not there" in line(plan, "data.sources: ")


def test_instructions_that_are_there_but_wrong_are_an_error(experiment, tmp_path):
    (tmp_path / "list.json").write_text("{}")
    source = f"data.instructions={{conversations: {tmp_path}/list.json, images: {tmp_path}/photos}}"
    config = load_config(experiment.config, [source])
    assert line(describe(config, 1), "training pairs:").endswith("unknown")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="cannot be read as a list of conversations"):
        describe(config, 1)


def test_the_planned_model_has_the_sizes_of_the_one_that_is_built(experiment):
    config = load_config(experiment.config)
    planned, built = build_model(config, META), build_model(config, torch.device("cpu"))
    for model in (planned, built):
        trainable_parts(model, config.training.trainable)
    sizes = [{n: (tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()} for model in (planned, built)]
    assert sizes[0] == sizes[1]
    assert {p.device.type for p in planned.parameters()} == {"meta"}
    assert planned.encoder.spec == built.encoder.spec == image_spec(config.encoder)


def memory(*overrides: str, processes: int = 1) -> tuple[dict[str, int], dict[str, int]]:
    settings = load_config("train_mvtec", overrides)
    return estimate_memory(settings, planned_model(settings)[0], processes)


def gib(*overrides: str, processes: int = 1) -> float:
    return sum(memory(*overrides, processes=processes)[0].values()) / GIB


def test_what_saves_memory_is_estimated_to_save_it(nothing_there):
    assert gib("training.gradient_checkpointing=false") > 1.3 * gib()
    assert gib("training.offload_optimizer=false") > gib() + 112_663_480 * 4 * 5 / GIB
    assert gib("training.zero_stage=3", processes=2) < 0.9 * gib(processes=2)
    assert gib("llm.weights=pretrained_ckpt/vicuna_ckpt/13b_v0") > 24
    assert gib("training.micro_batch_size=2") > gib()


def test_a_frozen_parameter_takes_two_bytes_and_a_trained_one_its_optimisers_too(nothing_there):
    device, _ = memory()
    assert device["weights"] == 2 * (7_763_030_528 + 112_663_480)
    _, host = memory(processes=2)
    assert host["optimiser"] == 112_663_480 * 4 * 5 // 2  # divided between the two
    device, host = memory("training.zero_stage=0")  # which leaves the optimiser on the GPU
    assert "optimiser" in device and "optimiser" not in host


def demo(precision: str) -> dict[str, int]:
    config = load_config("imagebind_vicuna7b", [f"llm.precision={precision}"])
    return demo_memory(config, planned_model(config)[0])


def test_the_demo_fits_8_gib_at_4_bit_and_16_in_half_precision(nothing_there):
    vision, text, embeddings = 632_829_440, 354_032_640, 2 * 32_000 * 4096
    parts = demo("4bit")
    assert parts["encoder"] == 2 * vision and parts["keys and values, or the text tower"] == 2 * text
    assert parts["language model"] == pytest.approx(0.516 * 6_476_005_376 + 2 * embeddings, rel=1e-3)
    sizes = [sum(demo(precision).values()) / GIB for precision in ("full", "8bit", "4bit")]
    assert sizes == pytest.approx([15.4, 9.4, 6.5], abs=0.05)


def test_training_with_a_4_bit_base_fits_12_gib(nothing_there):
    everything = "training.trainable=[image_decoder, prompt_learner, llama_proj, lora]"
    assert gib("llm.precision=4bit") < gib("llm.precision=4bit", everything) < 12 < gib("llm.precision=8bit")
    device, _ = memory("llm.precision=4bit")
    assert device["weights"] == pytest.approx(2 * 7_875_694_009 - (2 - 0.51587) * 6_476_005_376, rel=1e-5)
    table = describe(load_config("train_mvtec"), processes=1)
    shown = [line(table, start).split()[-1] for start in ("this training, each GPU", "the demo, one GPU")]
    assert shown == [f"{gib('llm.precision=4bit'):.1f}", "6.5"]
    with pytest.raises(UserError, match="ZeRO stage 3 can't divide it"):
        load_config("train_mvtec", ["llm.precision=4bit", "training.zero_stage=3"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_start_and_print_a_config_that_can_be_used_again(name, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "code" / "scripts" / f"{name}.sh"), "--dry-run", "seed=5"],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The launcher prints lines before and after.
    printed = re.sub(r"^\[\d{4}-.*\n?", "", done.stdout[done.stdout.index("name:") :], flags=re.MULTILINE)
    assert yaml.safe_load(printed)["name"] == name
    (tmp_path / "again.yaml").write_text(printed)
    assert load_config(tmp_path / "again.yaml") == load_config(name, ["seed=5"])
