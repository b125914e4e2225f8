"""Weight files and folders, right and wrong, at small width where names and shapes allow it, for the tests."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from anomalygpt.model.checkpoint import shapes_of
from anomalygpt.model.prompt_learner import PromptLearner
from tests.helpers import llama_config
from tests.shared_data import ROOT


def thin(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of any shapes that take a few bytes each on disk."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def imagebind() -> dict[str, Tensor]:
    return thin(json.loads((ROOT / "tests" / "parity" / "imagebind_huge_keys.json").read_text()))


def pandagpt(width: int = 4096, adapter: str = ".default") -> dict[str, Tensor]:
    tensors = thin({"llama_proj.weight": (width, 1024), "llama_proj.bias": (width,)})
    for layer in range({4096: 32, 5120: 40}[width]):
        for projection in "qkvo":
            stem = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{projection}_proj.lora_"
            tensors |= thin({f"{stem}A{adapter}.weight": (32, width), f"{stem}B{adapter}.weight": (width, 32)})
    return tensors


def anomalygpt(width: int = 4096) -> dict[str, Tensor]:
    with torch.device("meta"):
        learner = shapes_of(PromptLearner(width).state_dict())
    tensors = thin({f"prompt_learner.{name}": shape for name, shape in learner.items()})
    for tap in range(4):
        tensors |= thin({f"image_decoder.fc.{tap}.weight": (1024, 1280), f"image_decoder.fc.{tap}.bias": (1024,)})
    return tensors


def llama(rows: int = 32000, width: int = 16, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A LLaMA of two layers with norms as trained ones have them."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(llama_config(rows, width, rms_norm_eps=1e-6, **changes))
    for name, value in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.normal_(value, 0.8, 0.1)
    return model.half()


def write_wide(folder: Path, rows: int) -> Path:
    """A language model's folder of the width of 7B, with two thin layers, of a few kilobytes."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(rows, 4096, rms_norm_eps=1e-6))
    shapes = shapes_of(model.state_dict())
    return write_hf(folder, model, "bin", {name: torch.ones(()).expand(shape) for name, shape in shapes.items()})


def difference(base: LlamaForCausalLM, tuned: LlamaForCausalLM) -> dict[str, Tensor]:
    """What LMSYS published: the tuned model minus the base, whose added rows are zero."""
    delta = {name: value.clone() for name, value in tuned.state_dict().items()}
    for name, value in base.state_dict().items():
        delta[name][: len(value)] -= value
    return delta


def tuned(base: LlamaForCausalLM, rows: int) -> LlamaForCausalLM:
    """The base after a little training, with rows for further tokens."""
    model = llama(rows, base.config.hidden_size, seed=1)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            old = base.state_dict()[name]
            value[: len(old)] = old + (0.01 * torch.randn(old.shape, generator=noise)).half()
    return model


def write_hf(
    folder: Path, model: LlamaForCausalLM, layout: str, tensors: dict[str, Tensor] | None = None, **config: Any
) -> Path:
    """Hugging Face's layout: ``layout`` is ``bin`` or ``safetensors``, with `` sharded`` for three shards."""
    tensors = dict(tensors or model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    settings = model.config.to_dict() | {"vocab_size": len(tensors["model.embed_tokens.weight"])} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.model").write_bytes(b"made here")
    suffix, shards = layout.split()[0], 3 if "sharded" in layout else 1
    stem, names = {"bin": "pytorch_model", "safetensors": "model"}[suffix], sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}.{suffix}" if shards > 1 else f"{stem}.{suffix}"
        part = {name: tensors[name] for name in names[shard::shards]}
        weight_map |= dict.fromkeys(part, file)
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file({name: value.contiguous() for name, value in part.items()}, folder / file, {"format": "pt"})
    if shards > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_meta(folder: Path, model: LlamaForCausalLM, parts: int) -> Path:
    """Meta's layout: the matrices divided among ``parts`` GPUs, rotary pairs next to each other."""
    folder.mkdir(parents=True, exist_ok=True)
    config, state = model.config, model.state_dict()
    heads, width = config.num_attention_heads, config.hidden_size
    (folder / "params.json").write_text(
        json.dumps({"dim": width, "n_layers": config.num_hidden_layers, "n_heads": heads, "norm_eps": 1e-6,
                    "vocab_size": -1})
    )  # fmt: skip
    (folder.parent / "tokenizer.model").write_bytes(b"Meta's")

    def interleaved(value: Tensor) -> Tensor:
        """Each head's rows a0 a1 … b0 b1 … as a0 b0 a1 b1 …."""
        return value.view(heads, 2, width // heads // 2, width).transpose(1, 2).reshape(width, width)

    tensors = {  # Meta's name -> value and the dimension that is divided
        "tok_embeddings.weight": (state["model.embed_tokens.weight"], 1),
        "norm.weight": (state["model.norm.weight"], None),
        "output.weight": (state["lm_head.weight"], 0),
        "rope.freqs": (torch.ones(2), None),
    }
    for layer in range(config.num_hidden_layers):
        here, there = f"layers.{layer}.", f"model.layers.{layer}."
        for ours, theirs, dimension in (
            ("attention.wq", "self_attn.q_proj", 0), ("attention.wk", "self_attn.k_proj", 0),
            ("attention.wv", "self_attn.v_proj", 0), ("attention.wo", "self_attn.o_proj", 1),
            ("feed_forward.w1", "mlp.gate_proj", 0), ("feed_forward.w2", "mlp.down_proj", 1),
            ("feed_forward.w3", "mlp.up_proj", 0), ("attention_norm", "input_layernorm", None),
            ("ffn_norm", "post_attention_layernorm", None),
        ):  # fmt: skip
            value = state[f"{there}{theirs}.weight"]
            value = interleaved(value) if ours.endswith(("wq", "wk")) else value
            tensors[f"{here}{ours}.weight"] = (value, dimension)
    for part in range(parts):
        own = {n: v if dim is None else v.chunk(parts, dim)[part].clone() for n, (v, dim) in tensors.items()}
        torch.save(own, folder / f"consolidated.{part:02}.pth")
    return folder


def cut(path: Path, kept: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    return path


def saved(tensors: Any, name: str, legacy: bool = False) -> Callable[[Path], Path]:
    """Makes a writer of a file with that name below a folder."""

    def write(root: Path) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = tensors() if callable(tensors) else tensors
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in content.items()}, path)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return write


def zero_checkpoint(root: Path) -> Path:
    folder = root / "global_step100"
    folder.mkdir()
    for name in ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"):
        torch.save({"module": {}}, folder / name)
    return folder


def without_a_shard(root: Path) -> Path:
    folder = write_hf(root / "7b_v0", llama(32001), "bin sharded")
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    return folder


def with_a_pointer(root: Path) -> Path:
    folder = write_hf(root / "vicuna", llama(32001), "bin sharded")
    (folder / "pytorch_model-00002-of-00003.bin").write_text(LFS)
    return folder


def without(name: str, folder: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        path = folder(root)
        (path / name).unlink()
        return path

    return write


def fewer(tensors: dict[str, Tensor], count: int = 1) -> dict[str, Tensor]:
    return dict(list(tensors.items())[:-count])


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 13476939516\n"
DELTA = lambda rows: difference(llama(), tuned(llama(), rows))  # noqa: E731
HF = "hf"
# name -> (writer, kind, a part of `what` or `fault`, whether it is complete)
MADE: dict[str, tuple[Callable[[Path], Path], str, str, bool]] = {
    "ImageBind": (saved(imagebind, "imagebind_huge.pth"), "imagebind", "1311 tensors", True),
    "ImageBind, old torch": (saved(imagebind, "imagebind_huge.pth", legacy=True), "imagebind", "", True),
    "ImageBind without audio": (
        saved(lambda: {n: v for n, v in imagebind().items() if "audio" not in n}, "imagebind_huge.pth"),
        "imagebind", "of 1311 tensors", False,
    ),
    "ImageBind, cut off": (lambda r: cut(saved(imagebind, "x.pth")(r)), "unreadable", "cut off", False),
    "PandaGPT 7B": (saved(pandagpt, "7b/pytorch_model.pt"), "pandagpt", "which of this size", True),
    "PandaGPT 7B, old names": (saved(lambda: pandagpt(adapter=""), "x.pt"), "pandagpt", "7B", True),
    "PandaGPT 13B": (saved(lambda: pandagpt(5120), "pytorch_model.pt"), "pandagpt", "13B", True),
    "PandaGPT without a layer": (saved(lambda: fewer(pandagpt(), 8), "x.pt"), "pandagpt", "250 of 258 tensors", False),
    "AnomalyGPT": (saved(anomalygpt, "train_mvtec/x.pt"), "anomalygpt", "which of this size", True),
    "AnomalyGPT for 13B": (saved(lambda: anomalygpt(5120), "x.pt"), "anomalygpt", "13B", True),
    "AnomalyGPT's prompts, cut": (
        saved(lambda: {n: v for n, v in anomalygpt().items() if "meta_net.3." not in n}, "x.pt"),
        "anomalygpt", "11 of 13 tensors", False,
    ),
    "DeepSpeed's nest": (saved(lambda: {"module": anomalygpt(), "global_steps": 3}, "x.pt"), "anomalygpt", "7B", True),
    "Lightning's nest": (
        saved(lambda: {"state_dict": {f"model.{n}": v for n, v in pandagpt().items()}, "epoch": 1}, "x.ckpt"),
        "pandagpt", "7B", True,
    ),
    "data parallel's prefix": (
        saved(lambda: {f"module.{n}": v for n, v in pandagpt().items()}, "x.pt"), "pandagpt", "7B", True,
    ),
    "ZeRO": (zero_checkpoint, "zero_checkpoint", "divided", False),
    "LoRA alone": (saved({"base.layers.0.lora_A.weight": torch.zeros(2, 3)}, "adapter.safetensors"), "lora", "", True),
    "Git LFS": (saved(LFS.encode(), "pytorch_model.pt"), "unreadable", "git lfs pull", False),
    "Git LFS, safetensors": (saved(LFS.encode(), "model.safetensors"), "unreadable", "git lfs pull", False),
    "web page": (saved(b"\n<!DOCTYPE html><html>", "pytorch_model.pt"), "unreadable", "resolve", False),
    "error in JSON": (saved(b'{"error": "Access to model is restricted"}', "x.bin"), "unreadable", "restricted", False),
    "nothing": (saved(b"", "x.pt"), "unreadable", "0 bytes", False),
    "zeros": (saved(bytes(4096), "x.pt"), "unreadable", "", False),
    "gzip": (saved(b"\x1f\x8b\x08" + bytes(99), "x.pt"), "unreadable", "unpack it", False),
    "GGUF": (saved(b"GGUF\x03\x00\x00\x00" + bytes(99), "x.bin"), "unreadable", "llama.cpp", False),
    "objects": (saved(pickle.dumps(complex), "x.pt"), "unreadable", "never loaded", False),
    "safetensors, cut off": (
        lambda root: cut(saved({"a": torch.zeros(99)}, "x.safetensors")(root)), "unreadable", "cut off", False,
    ),
    "nothing there": (lambda root: root / "absent.pt", "missing", "", True),
    "empty folder": (lambda root: root, "unknown", "no weight files", True),
    "other tensors": (saved({"fc.weight": torch.zeros(3, 3)}, "x.pt"), "unknown", "1 tensors", True),
    "Vicuna v0": (lambda r: write_hf(r / "7b_v0", llama(32001), "bin sharded"), "vicuna_v0", "32001 rows", True),
    "Vicuna v0, one file": (lambda r: write_hf(r / HF, llama(32001), "safetensors"), "vicuna_v0", "", True),
    "LLaMA": (lambda r: write_hf(r / "llama-7b-hf", llama(), "bin sharded"), "llama", "by its folder's name", True),
    "LLaMA, renamed": (lambda r: write_hf(r / "7b_v0", llama(), "bin"), "llama_or_vicuna", "do not say more", True),
    "LLaMA, Meta's": (lambda r: write_meta(r / "7B", llama(), 1), "llama_meta", "Meta", True),
    "LLaMA 13B, Meta's": (lambda r: write_meta(r / "13B", llama(), 2), "llama_meta", "Meta", True),
    "LLaMA 13B, half of it": (
        without("consolidated.01.pth", lambda r: write_meta(r / "13B", llama(), 2)),
        "llama_meta", "8 of 16 rows", False,
    ),
    "Vicuna v1.1": (
        lambda r: write_hf(r / HF, llama(), "bin", _name_or_path="lmsys/vicuna-7b-v1.1"), "vicuna_v1", "v1.1", True,
    ),
    "Vicuna v1.5": (
        lambda r: write_hf(r / "7b_v0", llama(), "bin", _name_or_path="vicuna-7b-v1.5", max_position_embeddings=4096),
        "llama_2", "Vicuna v1.5", True,
    ),
    "Llama 2": (lambda r: write_hf(r / HF, llama(), "bin", rms_norm_eps=1e-5), "llama_2", "Llama 2", True),
    "delta v0": (lambda r: write_hf(r / HF, llama(), "bin", DELTA(32001)), "vicuna_delta", "version 0", True),
    "delta v1.1": (lambda r: write_hf(r / HF, llama(), "safetensors", DELTA(32000)), "vicuna_delta", "1.1", True),
    "delta's shard": (saved(lambda: DELTA(32001), "x.bin"), "vicuna_delta", "not applied", False),
    "Vicuna's shard": (saved(lambda: llama(32001).state_dict(), "x.bin"), "language_model", "folder", False),
    "shard missing": (without_a_shard, "language_model", "1 of 3 weight shards are missing", False),
    "shard a pointer": (with_a_pointer, "language_model", "pytorch_model-00002-of-00003.bin", False),
    "no tokeniser": (
        without("tokenizer.model", lambda r: write_hf(r / HF, llama(32001), "bin")), "vicuna_v0", "tokeniser", False,
    ),
    "layer missing": (
        lambda r: write_hf(r / HF, llama(32001), "bin", num_hidden_layers=3), "vicuna_v0", "2 of 3 layers", False,
    ),
    "another model": (lambda r: write_hf(r / HF, llama(49152), "bin"), "language_model", "49152 rows", True),
}  # fmt: skip
