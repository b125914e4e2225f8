"""Vicuna version 0 from LLaMA and a delta, in every layout that people have."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from anomalygpt.model.llm import load_llm
from anomalygpt.model.probe import probe
from anomalygpt.prepare_vicuna import main
from anomalygpt.weights import vicuna
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
    return write_hf(root / "llama-7b-hf", BASE, layout)


def write_delta(root: Path, layout: str = "bin sharded") -> Path:
    return write_hf(root / "delta", VICUNA, layout, DELTA | BUFFERS)


def run(llama: Path, delta: Path, out: Path) -> int:
    return main(["--llama", str(llama), "--delta", str(delta), "--out", str(out)])


def logits(model: LlamaForCausalLM) -> Tensor:
    with torch.inference_mode():
        return copy.deepcopy(model).float().eval()(torch.arange(3, 90, 7)[None]).logits


@pytest.mark.parametrize("delta_layout", ["bin sharded", "safetensors"])
@pytest.mark.parametrize("layout", ["bin", "bin sharded", "safetensors sharded"])
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


def test_stopped_run_leaves_nothing_that_loads_and_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, delta, out = write_llama(tmp_path, "bin"), write_delta(tmp_path), tmp_path / "7b_v0"
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(vicuna.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(base, delta, out)
    assert len(list(out.glob("*.safetensors"))) > 1
    assert probe(out).kind == "unknown" or probe(out).fault, "an unfinished folder is not taken for a model"
    assert run(base, delta, out) == 0
    assert probe(out).kind == "vicuna_v0" and not probe(out).fault
    with pytest.raises(SystemExit):
        run(base, delta, out)
    assert "holds a model already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("base", "delta", "words"),
    [
        ("vicuna", "delta", "expected LLaMA (the first; 7B or 13B) in Hugging Face's layout, found Vicuna version 0"),
        ("llama 2", "delta", "found Llama 2"),
        ("delta", "delta", "found a Vicuna delta (version 0) that was not applied"),
        ("base", "vicuna", "expected Vicuna's delta, version 0, found Vicuna version 0"),
        ("base", "delta 1.1", "as version 1.1 has; expected version 0"),
        ("wider", "delta", "It has to be of the size of"),
        ("base", "damaged", "not finite after the sum"),
        ("Meta's", "delta", "in Hugging Face's layout, found LLaMA 16 wide in Meta's own layout"),
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
        "Meta's": lambda: write_meta(tmp_path / "7B", BASE, 2),
        "absent": lambda: tmp_path / "absent",
        "no tokeniser": lambda: (write_delta(tmp_path) / "tokenizer.model").unlink() or tmp_path / "delta",
    }
    with pytest.raises(SystemExit) as ended:
        run(write[base](), write[delta](), tmp_path / "out")
    error = capsys.readouterr().err
    line = [line for line in error.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(line) == 1 and words in line[0]
    assert not list((tmp_path / "out").glob("*.json"))
