"""Vicuna version 0 out of LLaMA and the delta that LMSYS published, shard by shard."""

import json
import logging
import shutil
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from anomalygpt.errors import UserError
from anomalygpt.files import claimed
from anomalygpt.model import checkpoint
from anomalygpt.model.checkpoint import CheckpointError, read_tensors, save_tensors
from anomalygpt.model.probe import probe

logger = logging.getLogger(__name__)

SHARD_BYTES = 2**30
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"  # have a row for each token


def mapped_folder(folder: Path, kinds: tuple[str, ...], expected: str) -> dict[str, Tensor]:
    """The tensors of a folder in Hugging Face's layout, mapped, without computed ones.

    Raises :class:`CheckpointError` where it is incomplete or none of the kinds of ``model/probe.py``.
    """
    found = probe(folder)
    if found.fault or found.kind not in kinds:
        what = "; ".join(filter(None, (found.what, found.fault)))
        raise CheckpointError(f"{folder}: expected {expected}, found {what}")
    tensors = {name: value for file in checkpoint.weight_files(folder) for name, value in read_tensors(file).items()}
    return {name: value for name, value in tensors.items() if not name.endswith("inv_freq")}


def prepare_vicuna(llama: Path, delta: Path, out: Path) -> None:
    """Writes the folder of Vicuna version 0: float16 shards, config and tokeniser.

    Raises:
        UserError: a folder is incomplete or something else, the two do not fit, or ``out`` holds a model.
    """
    layout = "LLaMA (the first; 7B or 13B) in Hugging Face's layout"
    base = mapped_folder(llama, ("llama", "llama_or_vicuna"), layout)
    change = mapped_folder(delta, ("vicuna_delta",), "Vicuna's delta, version 0")
    shapes, own = checkpoint.shapes_of(change), checkpoint.shapes_of(base)
    if shapes[EMBEDDING] == own[EMBEDDING]:
        raise CheckpointError(f"{delta}: has LLaMA's number of rows, as version 1.1 has; expected version 0")
    # The delta's further row, for padding, is added to zeros.
    own |= {name: (own[name][0] + 1, *own[name][1:]) for name in (EMBEDDING, OUTPUT) if name in own}
    checkpoint.check_names(shapes, own, llama, advice=f"It has to be of the size of {delta}.")
    planned = {name: value.to("meta", torch.float16) for name, value in change.items()}
    shards = split_torch_state_dict_into_shards(planned, max_shard_size=SHARD_BYTES)
    with claimed(out, "--out"):
        if (out / "config.json").exists():
            raise UserError(f"{out}: holds a model already; empty it, or choose another --out")
        for file, names in shards.filename_to_tensors.items():
            logger.info("writing %s", out / file)
            tensors = {name: _sum(name, base[name], change[name]) for name in names}
            save_tensors(tensors, out / file, {"format": "pt"})
        for source in delta.glob("*token*"):
            shutil.copyfile(source, out / source.name)
        config = json.loads((delta / "config.json").read_text(encoding="utf-8"))
        config |= {"torch_dtype": "float16", "vocab_size": shapes[EMBEDDING][0]}
        index = {"metadata": {}, "weight_map": shards.tensor_to_filename}
        # The index last: nothing loads before.
        for name, content in {"config.json": config, "model.safetensors.index.json": index}.items():
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sum(name: str, base: Tensor, change: Tensor) -> Tensor:
    total = change.to(torch.float32, copy=True)
    total[: len(base)] += base
    if not (total := total.half()).isfinite().all():
        raise CheckpointError(f"{name}: not finite after the sum; a file of LLaMA or of the delta is damaged")
    return total
