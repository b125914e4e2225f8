"""Vicuna version 0 out of LLaMA and the delta that LMSYS published, shard by shard."""

import hashlib
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from anomalygpt.errors import UserError
from anomalygpt.files import claimed, sha256, write_files
from anomalygpt.model import checkpoint
from anomalygpt.model.checkpoint import CheckpointError, probe, read_tensors, save_tensors

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**30
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"  # have a row for each token
# Meta's names -> Hugging Face's, and the dimension that is divided among the files; -1: each file holds all.
META_NAMES = {
    "tok_embeddings": ("model.embed_tokens", 1), "norm": ("model.norm", -1), "output": ("lm_head", 0),
    "attention.wq": ("self_attn.q_proj", 0), "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0), "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0), "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", -1), "ffn_norm": ("post_attention_layernorm", -1),
}  # fmt: skip


def joined(parts: list[Tensor], dimension: int = 0, heads: int = 0, device: str = "cpu") -> Tensor:
    """Parts of a tensor, divided along a dimension, in Hugging Face's layout; ``heads`` are of a Q or K of Meta's.

    It is still mapped where nothing is joined or permuted; on ``meta`` it is a shape alone.
    """
    value = torch.cat([part.to(device) for part in parts], dimension) if len(parts) > 1 else parts[0].to(device)
    if heads:  # Meta rotates neighbouring rows of a head as pairs, Hugging Face a row of each half
        value = value.view(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
    return value


def map_folder(folder: Path, kinds: tuple[str, ...], expected: str) -> tuple[dict[str, Any], list[Path]]:
    """Functions that read the tensors of a folder in either layout, by Hugging Face's names; and its files.

    Raises :class:`CheckpointError` where it is incomplete or none of the kinds of ``model/checkpoint.py``.
    """
    found = probe(folder)
    if found.fault or found.kind not in kinds:
        what = "; ".join(filter(None, (found.what, found.fault)))
        raise CheckpointError(f"{folder}: expected {expected}, found {what}")
    files = sorted(folder.glob("consolidated.*.pth")) or checkpoint.weight_files(folder)
    opened = [read_tensors(file) for file in files]
    if files[0].suffix != ".pth":
        return {name: partial(joined, [value]) for tensors in opened for name, value in tensors.items()}, files
    heads = json.loads((folder / "params.json").read_text(encoding="utf-8"))["n_heads"]
    mapped = {}
    for name in opened[0]:
        *layer, stem = name.removesuffix(".weight").split(".", 2 if name.startswith("layers.") else 0)
        if stem in META_NAMES:  # rope.freqs is not: it is computed
            ours, dimension = META_NAMES[stem]
            parts = [tensors[name] for tensors in opened[: 1 if dimension < 0 else None]]
            read = partial(joined, parts, dimension, heads if stem.endswith(("wq", "wk")) else 0)
            mapped[".".join([*(["model", *layer] if layer else []), ours, "weight"])] = read
    return mapped, files


def prepare_vicuna(llama: Path, delta: Path, out: Path) -> None:
    """Writes Vicuna version 0 to ``out``: float16 shards, config, tokeniser, and a manifest of what went in.

    LLaMA is in Hugging Face's or in Meta's layout. A call that was stopped goes on with the shards that it lacks.
    Raises :class:`UserError`: a folder is incomplete or something else, the two do not fit, or ``out`` holds others.
    """
    base, base_files = map_folder(llama, ("llama", "llama_or_vicuna", "llama_meta"), "LLaMA (the first; 7B or 13B)")
    change, files = map_folder(delta, ("vicuna_delta",), "Vicuna's delta, version 0")
    planned = {name: read(device="meta").half() for name, read in change.items() if not name.endswith("inv_freq")}
    shapes = checkpoint.shapes_of(planned)
    own = checkpoint.shapes_of({name: read(device="meta") for name, read in base.items()})
    if shapes[EMBEDDING] == own[EMBEDDING]:
        raise CheckpointError(f"{delta}: has LLaMA's number of rows, as version 1.1 has; expected version 0")
    # The delta's further row, for padding, is added to zeros.
    own |= {name: (own[name][0] + 1, *own[name][1:]) for name in (EMBEDDING, OUTPUT) if name in own}
    checkpoint.check_names(shapes, own, llama, ".*inv_freq$", advice=f"It has to be of the size of {delta}.")
    shards = split_torch_state_dict_into_shards(planned, max_shard_size=SHARD_BYTES)
    with claimed(out, "--out"):
        logger.info("hashing %d files", len(base_files + files))
        sources = {"llama": base_files, "delta": files}
        digests = {what: {file.name: sha256(file) for file in paths} for what, paths in sources.items()}
        identity = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        names = shards.filename_to_tensors
        done = [name for name in names if checkpoint.read_metadata(out / name).get("sources") == identity]
        others = {file.name for kind in ("*.safetensors", "*.bin") for file in out.glob(kind)}.difference(done)
        if others:
            raise UserError(f"{out}: holds other weights ({min(others)}); empty it, or choose another --out")
        for file, shard in names.items():
            logger.info("%s: %s", out / file, "there already" if file in done else "writing")
            if file not in done:
                tensors = {name: _sum(name, base[name](), change[name]()) for name in shard}
                save_tensors(tensors, out / file, {"format": "pt", "sources": identity})
        for source in delta.glob("*token*"):
            shutil.copyfile(source, out / source.name)
        config = json.loads((delta / "config.json").read_text(encoding="utf-8")) | {"torch_dtype": "float16"}
        written = {name: value for file in names for name, value in read_tensors(out / file).items()}
        checkpoint.check_names(shapes, checkpoint.shapes_of(written), out)
        # The index comes last: nothing loads before.
        config |= {"vocab_size": shapes[EMBEDDING][0]}
        index = {"metadata": {}, "weight_map": shards.tensor_to_filename}
        about = {"config.json": config, "manifest.json": {"name": "Vicuna version 0", "sources": digests}}
        write_files(out, {**about, "model.safetensors.index.json": index})


def _sum(name: str, base: Tensor, change: Tensor) -> Tensor:
    total = change.to(torch.float32, copy=True)
    total[: len(base)] += base
    if not (total := total.half()).isfinite().all():
        raise CheckpointError(f"{name}: not finite after the sum; a file of LLaMA or of the delta is damaged")
    return total
