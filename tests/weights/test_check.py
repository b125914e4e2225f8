"""The probe names what weight files and folders are, and ``check_weights.py`` says what fits and what to do."""

import json
import os
import random
import resource
from pathlib import Path

import open_clip
import pytest
import timm
import torch

from anomalygpt.check_weights import main
from anomalygpt.errors import UserError, set_strict
from anomalygpt.model.checkpoint import CheckpointError, probe, read_tensors
from anomalygpt.model.llm import load_llm
from tests.weights.made_weights import DELTA, MADE, anomalygpt, imagebind, llama, pandagpt, saved, write_hf, write_wide


@pytest.mark.parametrize("case", MADE)
def test_what_it_is_and_whether_it_is_complete(tmp_path: Path, case: str) -> None:
    write, kind, words, complete = MADE[case]
    found = probe(write(tmp_path))
    assert (found.kind, not found.fault) == (kind, complete), found
    assert words in f"{found.what}; {found.fault}"
    assert "\n" not in found.what + found.fault


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    return tmp_path


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_without_a_path_all_that_the_config_needs_is_looked_at(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = checked(capsys)
    assert code == 1 and [result["status"] for result in results] == ["missing"] * 4
    advice = [result["advice"] for result in results]
    assert advice[0].startswith("download https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth")
    assert advice[1].startswith("python prepare_vicuna.py --llama LLAMA_FOLDER --delta lmsys/vicuna-7b-delta-v0 --out ")
    assert "pandagpt_7b_max_len_1024" in advice[2] and "train_supervised" in advice[3]
    saved(imagebind, "pretrained_ckpt/imagebind_ckpt/imagebind_huge.pth")(home)
    saved(pandagpt, "pretrained_ckpt/pandagpt_ckpt/7b/pytorch_model.pt")(home)
    saved(anomalygpt, "code/ckpt/train_supervised/pytorch_model.pt")(home)
    folder = home / "pretrained_ckpt" / "vicuna_ckpt" / "7b_v0"
    write_wide(folder, 32001)
    code, results = checked(capsys)
    assert (code, [result["status"] for result in results]) == (0, ["ok"] * 4), results
    # Each in the place of another, as people do.
    saved(lambda: pandagpt(5120), "pretrained_ckpt/pandagpt_ckpt/7b/pytorch_model.pt")(home)
    saved(pandagpt, "code/ckpt/train_supervised/pytorch_model.pt")(home)
    code, results = checked(capsys)
    assert [result["status"] for result in results] == ["ok", "ok", "wrong", "wrong"]
    assert "deltas needs one for a width of 4096 here" in results[2]["fault"]
    assert "deltas needs AnomalyGPT's delta here" in results[3]["fault"]


def test_a_path_is_compared_with_its_place_and_others_are_only_named(home: Path, capsys) -> None:
    raw = write_wide(home / "pretrained_ckpt" / "vicuna_ckpt" / "7b_v0", 32000)
    code, [result] = checked(capsys, str(raw))
    assert (code, result["status"]) == (0, "unsure") and "prepare_vicuna.py" in result["advice"]
    delta = write_hf(home / "delta", llama(), "bin", DELTA(32001))
    code, [result] = checked(capsys, str(delta))
    assert (code, result["status"]) == (1, "wrong") and "prepare_vicuna.py" in result["advice"]
    assert main([str(raw), str(delta)]) == 1
    assert capsys.readouterr().out.count(" -> python prepare_vicuna.py") == 2


TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_clip(folder: Path, layers: int) -> Path:
    """A small model that open_clip then knows by the name ``checked-clip``, and a file with so many layers."""
    (folder / "checked-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder)
    vision = TINY_CLIP["vision_cfg"] | {"layers": layers}
    clip = open_clip.CLIP(24, vision, TINY_CLIP["text_cfg"])
    tensors = {name: value.contiguous() for name, value in clip.state_dict().items()}
    return saved(tensors, "open_clip_model.safetensors")(folder)


def test_the_encoder_is_the_one_that_the_config_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, [missing] = checked(capsys, "--config", "winclip")
    assert (code, missing["status"]) == (1, "missing") and "open_clip_model.safetensors" in missing["advice"]
    settings = (
        "{kind: open_clip, name: checked-clip, image_size: 32, windows: [2], weights: open_clip_model.safetensors}"
    )
    options = ("--config", "winclip", "--set", f"encoder={settings}")
    write_clip(home, layers=4)
    code, [result] = checked(capsys, *options)
    assert (code, result["status"], result["kind"]) == (0, "ok", "open_clip"), result
    write_clip(home, layers=5)
    code, [result] = checked(capsys, *options)
    assert (code, result["status"]) == (1, "wrong") and "12 unexpected" in result["fault"], result
    vit = timm.create_model("test_vit", pretrained=False).state_dict()
    file = saved(vit, "model.safetensors")(home)
    for name, status in (("test_vit", "ok"), ("test_vit2", "wrong")):
        encoder = f"encoder={{kind: timm, name: {name}, image_size: 64, weights: model.safetensors}}"
        _, [result, *_] = checked(capsys, str(file), "--config", "train_backbone", "--set", encoder)
        assert result["status"] == status, result


def test_deltas_of_earlier_runs_and_models_of_the_hub_have_their_own_advice(home: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "cache"))
    code, results = checked(capsys, "--config", "train_compact_2_answer", "--set", "llm.weights=Qwen/Qwen2.5-0.5B")
    _, llm, shipped, run = results
    assert code == 1 and llm["path"] == "Qwen/Qwen2.5-0.5B" and "hf download" in llm["advice"]
    assert "git checkout -- " in shipped["advice"]
    assert run["advice"].endswith("python train.py --config train_compact_1_map"), run
    saved(anomalygpt, "runs/train_compact_1_map/model.safetensors")(home)
    _, [*_, run] = checked(capsys, "--config", "train_compact_2_answer")
    assert run["status"] == "wrong" and "deltas needs states here, too" in run["fault"], run


def test_at_load_a_delta_is_refused_and_what_is_not_version_0_is_warned_about(tmp_path: Path, capsys) -> None:
    delta = write_hf(tmp_path / "delta" / "7b_v0", llama(), "bin", DELTA(32001))
    with pytest.raises(CheckpointError, match="not applied.*prepare_vicuna.py"):
        load_llm(delta, torch.float32, torch.device("cpu"))
    newer = write_hf(tmp_path / "7b_v0", llama(), "bin", max_position_embeddings=4096, _name_or_path="vicuna-7b-v1.5")
    set_strict(False)
    load_llm(newer, torch.float32, torch.device("cpu"))
    assert "expected Vicuna version 0, found Vicuna v1.5" in capsys.readouterr().err
    set_strict(True)
    with pytest.raises(UserError, match="Vicuna v1.5"):
        load_llm(newer, torch.float32, torch.device("cpu"))
    set_strict(False)
    load_llm(write_hf(tmp_path / "good" / "7b_v0", llama(32001), "bin"), torch.float32, torch.device("cpu"))
    assert capsys.readouterr().err == ""


def test_compressed_file_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(2**24))
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "x.pt")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(min(len(data), rng.choice((64, 4096, 10**9))) or 1)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:place] or bytearray(b"x")
        elif kind == 1:
            del data[place : place + rng.randrange(1, 32)]
        elif kind == 2:
            data[place:place] = data[place : place + rng.randrange(1, 64)]
        elif kind == 3:
            data[place : place + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\x00\x00\x00\x7f"))
        else:
            data[place : place + 1] = bytes([rng.randrange(256)])
    return bytes(data)


def test_mutated_files_give_a_result_and_run_nothing(tmp_path: Path) -> None:
    """10,000 of them with ``ANOMALYGPT_FUZZ=10000``."""
    small = {"llama_proj.weight": torch.ones(8, 4), "image_decoder.fc.0.bias": torch.ones(3)}
    seeds = [saved(small, name)(tmp_path) for name in ("a.pt", "a.safetensors")]
    seeds += [saved(small, "b.pt", legacy=True)(tmp_path)]
    folder = write_hf(tmp_path / "llm", llama(64, 8, num_attention_heads=2, intermediate_size=8), "safetensors sharded")
    seeds += [folder / "config.json", folder / "model.safetensors.index.json"]
    contents = {path: path.read_bytes() for path in seeds}
    rng = random.Random(0)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(int(os.environ.get("ANOMALYGPT_FUZZ", "150"))):
        path = seeds[number % len(seeds)]
        path.write_bytes(mutated(contents[path], rng))
        found = probe(path if path.parent == tmp_path else folder)
        assert found.what and "\n" not in found.what + found.fault, (number, found)
        path.write_bytes(contents[path])
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
    assert grown < 2**20, "kilobytes, for files of kilobytes"
