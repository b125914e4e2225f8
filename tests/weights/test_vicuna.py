"""Vicuna version 0 from LLaMA and a delta, in every layout that people have."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from anomalygpt.model.checkpoint import probe, read_tensors
from anomalygpt.model.llm import load_llm
from anomalygpt.prepare_vicuna import main
from anomalygpt.weights import vicuna
from tests.shared_data import ROOT
from tests.weights.made_weights import difference, llama, tuned, write_hf, write_meta

BASE = llama(intermediate_size=48)
VICUNA = tuned(BASE, 32001)
DELTA = difference(BASE, VICUNA)
# Published in half precision, the delta restores the tuned model but for a rounding; this is the sum in that precision.
SUM = {name: value.clone() for name, value in DELTA.items()}
for _name, _value in BASE.state_dict().items():
    SUM[_name][: len(_value)] += _value
BUFFERS = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.zeros(2) for layer in range(2)}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vicuna, "SHARD_BYTES", 2**20)


def write_llama(root: Path, layout: str) -> Path:
    if layout.startswith("Meta"):
        return write_meta(root / "LLaMA" / "7B", BASE, int(layout.split()[1]))
    return write_hf(root / "llama-7b-hf", BASE, layout)


def write_delta(root: Path, layout: str = "bin sharded") -> Path:
    return write_hf(root / "delta", VICUNA, layout, DELTA | BUFFERS)


def run(llama: Path, delta: Path, out: Path) -> int:
    return main(["--llama", str(llama), "--delta", str(delta), "--out", str(out)])


def logits(model: LlamaForCausalLM) -> Tensor:
    with torch.inference_mode():
        return copy.deepcopy(model).float().eval()(torch.arange(3, 90, 7)[None]).logits


@pytest.mark.parametrize("delta_layout", ["bin sharded", "safetensors"])
@pytest.mark.parametrize("layout", ["bin", "bin sharded", "safetensors sharded", "Meta 1", "Meta 2", "Meta 4"])
def test_every_layout_gives_the_same_vicuna_which_loads(tmp_path: Path, layout: str, delta_layout: str) -> None:
    out = tmp_path / "7b_v0"
    assert run(write_llama(tmp_path, layout), write_delta(tmp_path, delta_layout), out) == 0
    found = probe(out)
    assert (found.kind, found.fault) == ("vicuna_v0", "")
    model = load_llm(out, torch.float32, torch.device("cpu"))
    for name, value in VICUNA.state_dict().items():
        assert torch.equal(model.state_dict()[name], SUM[name].float()), name
        torch.testing.assert_close(SUM[name], value, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(logits(model), logits(VICUNA), rtol=0, atol=1e-3)
    assert (out / "tokenizer.model").read_bytes() == b"made here"
    assert len(list(out.glob("*.safetensors"))) > 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert {len(digest) for digests in manifest["sources"].values() for digest in digests.values()} == {64}


def test_metas_rotation_of_neighbours_is_hugging_faces_rotation_of_halves(tmp_path: Path) -> None:
    """Attention scores computed as Meta's model does it, with complex numbers, equal those of the converted weights."""
    source, files = vicuna.map_folder(write_meta(tmp_path / "7B", BASE, 2), ("llama_meta",), "LLaMA")
    width, heads, side, positions = 16, 4, 4, 5
    raw = [read_tensors(file) for file in files]
    hidden = torch.randn(positions, width)
    angles = torch.outer(torch.arange(positions).float(), 10000.0 ** (-torch.arange(0, side, 2).float() / side))

    def as_meta(name: str) -> Tensor:
        projected = hidden @ torch.cat([part[f"layers.0.attention.{name}.weight"] for part in raw]).float().T
        pairs = torch.view_as_complex(projected.view(positions, heads, side // 2, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)

    def converted(name: str) -> Tensor:
        projected = hidden @ source[f"model.layers.0.self_attn.{name}.weight"]().float().T
        first, second = projected.view(positions, heads, side).chunk(2, dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    scores = [torch.einsum("qhd,khd->hqk", q, k) for q, k in (
        (as_meta("wq"), as_meta("wk")), (converted("q_proj"), converted("k_proj")))]  # fmt: skip
    torch.testing.assert_close(*scores)


def test_stopped_run_goes_on_and_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, delta, out = write_llama(tmp_path, "bin"), write_delta(tmp_path), tmp_path / "7b_v0"
    save = vicuna.save_tensors

    def save_one(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(vicuna, "save_tensors", save_one)
    with pytest.raises(KeyboardInterrupt):
        run(base, delta, out)
    [first] = out.glob("*.safetensors")
    assert probe(out).kind == "unknown" or probe(out).fault, "an unfinished folder is not taken for a model"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(vicuna, "save_tensors", save)
    assert run(base, delta, out) == 0
    assert first.stat().st_mtime_ns == before
    assert probe(out).kind == "vicuna_v0" and not probe(out).fault
    # Other weights are neither mixed with these nor overwritten.
    other = write_hf(tmp_path / "other", llama(seed=5, intermediate_size=48), "bin")
    with pytest.raises(SystemExit):
        run(other, delta, out)


def test_killed_process_leaves_nothing_that_loads_and_the_next_one_finishes(tmp_path: Path) -> None:
    base, delta, out = write_llama(tmp_path, "Meta 2"), write_delta(tmp_path), tmp_path / "7b_v0"
    script = "import os, signal, sys; from anomalygpt import prepare_vicuna; from anomalygpt.weights import vicuna\n"
    script += "vicuna.SHARD_BYTES = 2**20\n"
    script += f"vicuna.shutil.copyfile = lambda *a: os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    command = ["--llama", str(base), "--delta", str(delta), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", f"{script}prepare_vicuna.main({command!r})"], cwd=ROOT / "code",
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False, capture_output=True)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(out.glob("*.safetensors"))) > 1 and not (out / "model.safetensors.index.json").exists()
    assert main(command) == 0 and probe(out).kind == "vicuna_v0"


@pytest.mark.parametrize(
    ("base", "delta", "words"),
    [
        ("vicuna", "delta", "expected LLaMA (the first; 7B or 13B), found Vicuna version 0"),
        ("llama 2", "delta", "found Llama 2"),
        ("delta", "delta", "found a Vicuna delta (version 0) that was not applied"),
        ("base", "vicuna", "expected Vicuna's delta, version 0, found Vicuna version 0"),
        ("base", "delta 1.1", "as version 1.1 has; expected version 0"),
        ("wider", "delta", "It has to be of the size of"),
        ("base", "damaged", "not finite after the sum"),
        ("half", "delta", "parts are missing"),
        ("absent", "delta", "found not there"),
        ("base", "no tokeniser", "no tokeniser: tokenizer.model"),
    ],
)
def test_wrong_folder_is_one_line(tmp_path: Path, capsys, base: str, delta: str, words: str) -> None:
    broken = DELTA | {"model.norm.weight": DELTA["model.norm.weight"].clone().fill_(0.01)}
    broken["lm_head.weight"] = torch.full_like(DELTA["lm_head.weight"], float("nan"))
    write = {
        "base": lambda: write_llama(tmp_path, "bin"),
        "vicuna": lambda: write_hf(tmp_path / "vicuna", VICUNA, "bin"),
        "llama 2": lambda: write_hf(tmp_path / "llama", BASE, "bin", rms_norm_eps=1e-5),
        "delta": lambda: write_delta(tmp_path),
        "delta 1.1": lambda: write_hf(tmp_path / "d", BASE, "bin", difference(BASE, tuned(BASE, 32000))),
        "damaged": lambda: write_hf(tmp_path / "d", BASE, "bin", broken),
        "wider": lambda: write_hf(tmp_path / "wide", llama(width=32, intermediate_size=48), "bin"),
        "half": lambda: (write_llama(tmp_path, "Meta 2") / "consolidated.01.pth").unlink() or tmp_path / "LLaMA/7B",
        "absent": lambda: tmp_path / "absent",
        "no tokeniser": lambda: (write_delta(tmp_path) / "tokenizer.model").unlink() or tmp_path / "delta",
    }
    with pytest.raises(SystemExit) as ended:
        run(write[base](), write[delta](), tmp_path / "out")
    error = capsys.readouterr().err
    line = [line for line in error.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(line) == 1 and words in line[0]
    assert not list((tmp_path / "out").glob("*.json"))
