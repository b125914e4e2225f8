"""Vicuna version 0 out of LLaMA and the delta that LMSYS published, shard by shard."""

import hashlib
import json
import logging
import shutil
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from anomalygpt.errors import UserError
from anomalygpt.files import claimed, replacing, sha256
from anomalygpt.model.checkpoint import (
    CheckpointError,
    Shape,
    check_names,
    folder_shapes,
    read_metadata,
    read_tensors,
    save_tensors,
    weight_files,
)
from anomalygpt.model.probe import probe
from anomalygpt.weights.fetch import MANIFEST

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**31
ROWS = ("model.embed_tokens.weight", "lm_head.weight")  # have a row for each token
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Meta's names -> Hugging Face's, and the dimension that is divided among the files; None: each file holds all.
META_NAMES: dict[str, tuple[str, int | None]] = {
    "tok_embeddings": ("model.embed_tokens", 1), "norm": ("model.norm", None), "output": ("lm_head", 0),
    "attention.wq": ("self_attn.q_proj", 0), "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0), "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0), "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None), "ffn_norm": ("post_attention_layernorm", None),
}  # fmt: skip
_opened = lru_cache(maxsize=3)(read_tensors)


class Source:
    """LLaMA's or a delta's folder in either layout; tensors have Hugging Face's names, and are read when asked for."""

    def __init__(self, folder: Path, kinds: tuple[str, ...], expected: str) -> None:
        found = probe(folder)
        if found.fault or found.kind not in kinds:
            what = "; ".join(filter(None, (found.what, found.fault)))
            raise CheckpointError(f"{folder}: expected {expected}, found {what}")
        parts = sorted(folder.glob("consolidated.*.pth"))
        self.folder, self.files = folder, parts or weight_files(folder)
        self._places: dict[str, tuple[str, list[Path], int | None]] = {}  # name -> name in the files, files, dimension
        if not parts:
            self._places = {name: (name, [file], None) for file in self.files for name in _opened(file)}
            return
        self._heads = json.loads((folder / "params.json").read_text(encoding="utf-8"))["n_heads"]
        for name in _opened(parts[0]):
            *layer, stem = name.removesuffix(".weight").split(".", 2 if name.startswith("layers.") else 0)
            if stem in META_NAMES:  # rope.freqs is not: it is computed
                ours, dimension = META_NAMES[stem]
                place = (name, parts[:1] if dimension is None else parts, dimension)
                self._places[".".join(["model", *layer, ours] if layer else [ours]) + ".weight"] = place

    def shapes(self) -> dict[str, Shape]:
        """Name -> shape, in the order in which the files hold them."""
        shapes = {}
        for name, (stored, files, dimension) in self._places.items():
            if name.endswith("rotary_emb.inv_freq"):  # a buffer, in older files
                continue
            shape = list(_opened(files[0])[stored].shape)
            if dimension is not None:
                shape[dimension] = sum(_opened(file)[stored].shape[dimension] for file in files)
            shapes[name] = tuple(shape)
        return shapes

    def read(self, name: str) -> Tensor:
        """One tensor in Hugging Face's layout."""
        stored, files, dimension = self._places[name]
        parts = [_opened(file)[stored] for file in files]
        value = parts[0] if len(parts) == 1 else torch.cat(parts, dimension or 0)
        if stored.endswith((".wq.weight", ".wk.weight")):
            # Meta rotates neighbouring rows of a head as pairs, Hugging Face a row of its first half with the second's.
            value = value.view(self._heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        return value


def prepare_vicuna(llama: Path, delta: Path, out: Path) -> None:
    """Writes the folder of Vicuna version 0; a call that was stopped goes on with the shards that it lacks.

    Args:
        llama: LLaMA in Hugging Face's or in Meta's layout.
        delta: the folder of ``vicuna-7b-delta-v0`` or ``vicuna-13b-delta-v0``.
        out: gets float16 shards, config, tokeniser, and a manifest with the SHA-256 of each file that went in.

    Raises:
        UserError: a folder is incomplete or something else, the two do not fit, or ``out`` holds other weights.
    """
    base = Source(llama, ("llama", "llama_or_vicuna", "llama_meta"), "LLaMA (the first; 7B or 13B)")
    change = Source(delta, ("vicuna_delta",), "Vicuna's delta, version 0")
    shapes, own = change.shapes(), base.shapes()
    rows = shapes[ROWS[0]][0]
    # The delta's further row, for padding, is added to zeros.
    padded = {name: (rows, *own[name][1:]) for name in ROWS if name in own and 0 <= rows - own[name][0] <= 1}
    check_names(shapes, own | padded, llama, advice=f"It has to be of the size of {delta}.")
    if rows == own[ROWS[0]][0]:
        raise CheckpointError(
            f"{delta}: has LLaMA's {rows} rows, as version 1.1 has; expected version 0, with one more"
        )
    with claimed(out, "--out"):
        logger.info("hashing %d files", len(base.files + change.files))
        sources = {"llama": base, "delta": change}
        digests = {what: {file.name: sha256(file) for file in source.files} for what, source in sources.items()}
        identity = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
        shards = _shards(shapes)
        files = [out / f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
        done = [file for file in files if read_metadata(file).get("sources") == identity]
        others = [file.name for kind in ("*.safetensors", "*.bin") for file in out.glob(kind) if file not in done]
        if others:
            raise UserError(f"{out}: holds other weights ({others[0]}); empty it, or choose another --out")
        size = sum(2 * prod(shape) for shape in shapes.values()) - sum(file.stat().st_size for file in done)
        if (free := shutil.disk_usage(out).free) < size:
            raise UserError(f"{out}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room")
        for file, names in zip(files, shards, strict=True):
            logger.info("%s: %s", file, "there already" if file in done else "writing")
            if file not in done:
                tensors = {name: _sum(base, change, name) for name in names}
                save_tensors(tensors, file, {"format": "pt", "sources": identity})
        _write_others(base, change, out, digests, {n: f.name for f, ns in zip(files, shards, strict=True) for n in ns})
        check_names(shapes, folder_shapes(out), out)


def _shards(shapes: dict[str, Shape]) -> list[list[str]]:
    """Names in their order, divided so that each shard's float16 tensors have at most SHARD_BYTES, or are one."""
    shards: list[list[str]] = []
    size = SHARD_BYTES
    for name, shape in shapes.items():
        size += 2 * prod(shape)
        if size > SHARD_BYTES:
            shards.append([])
            size = 2 * prod(shape)
        shards[-1].append(name)
    return shards


def _sum(base: Source, change: Source, name: str) -> Tensor:
    total, own = change.read(name).to(torch.float32, copy=True), base.read(name)
    total[: len(own)] += own
    total = total.half()
    if not total.isfinite().all():
        raise CheckpointError(f"{name}: not finite after the sum; {base.folder} or {change.folder} is damaged")
    return total


def _write_others(base: Source, change: Source, out: Path, digests: dict, weight_map: dict[str, str]) -> None:
    """The config, the tokeniser and the manifest; and the index last, without which nothing loads the folder."""
    for name in TOKENIZER:
        folders = (change.folder, base.folder, base.folder.parent)  # Meta's is beside the models' folders
        if found := next((folder / name for folder in folders if (folder / name).is_file()), None):
            with replacing(out / name) as temporary:
                shutil.copyfile(found, temporary)
    if not (out / TOKENIZER[0]).is_file():
        raise UserError(f"{change.folder}: no {TOKENIZER[0]} there, nor in {base.folder}; put LLaMA's into one of them")
    config = json.loads((change.folder / "config.json").read_text(encoding="utf-8"))
    config |= {"vocab_size": change.shapes()[ROWS[0]][0], "torch_dtype": "float16"}
    index = {"metadata": {}, "weight_map": weight_map}
    manifest = {"name": "Vicuna version 0", "sources": digests}
    names = ("config.json", MANIFEST, "model.safetensors.index.json")
    for name, content in zip(names, (config, manifest, index), strict=True):
        with replacing(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
