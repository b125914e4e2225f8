"""What a weight file or folder is, judged by names, shapes, a few values, and the files beside them. Nothing is run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalygpt.model import checkpoint
from anomalygpt.model.checkpoint import LLAMA, CheckpointError, Shape, read_tensors, shapes_of

LLAMA_ROWS = 32000  # tokens of LLaMA; Vicuna version 0 has one more, for padding
# RMSNorm's weights average between 0.3 and 2 in trained LLaMAs. A delta holds their change by fine-tuning, about 0.01.
SMALLEST_NORM = 0.1


@dataclass(frozen=True)
class Probe:
    """A file or folder, recognised."""

    # One of weights/paper.yaml, or ``lora``, ``vicuna_v1``, ``vicuna_delta``, ``llama``, ``llama_or_vicuna``,
    # ``llama_2``, ``llama_meta``, ``unknown``, ``missing``, ``unreadable``.
    kind: str
    what: str  # the same in words, and how sure that is
    fault: str = ""  # what is missing or wrong in it; empty where it is complete
    width: int = 0  # of the language model that it is, or is for; 0 where that is unknown
    parts: tuple[str, ...] = ()  # of a delta


def probe(path: Path) -> Probe:
    """Recognises a weight file, or the folder of a language model, of a delta or of a training checkpoint."""
    if not path.is_dir():
        return _probe_file(path) if path.exists() else Probe("missing", "not there")
    if any(path.glob("*_optim_states.pt")) or any(path.glob("global_step*")):
        return Probe("zero_checkpoint", "a training checkpoint of DeepSpeed's", "its tensors are divided among files")
    if any(path.glob("consolidated.*.pth")):
        return _probe_meta(path)
    if (path / "config.json").is_file() or any(path.glob("*.index.json")):
        return _probe_language_model(path)
    files = [file for file in path.iterdir() if file.suffix in (".pt", ".pth", ".bin", ".safetensors", ".ckpt")]
    if len(files) == 1:
        return _probe_file(files[0])
    return Probe("unknown", f"a folder with {len(files) or 'no'} weight files and no config.json")


def _probe_file(path: Path) -> Probe:
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        return Probe("unreadable", _reason(error, path), "it can't be loaded")
    shapes = {checkpoint.delta_name(name): shape for name, shape in shapes_of(tensors).items()}
    kind, what, width = checkpoint.identify(shapes) or ("unknown", f"{len(shapes)} tensors of an unknown model", 0)
    parts = tuple(sorted({part for name in shapes if (part := checkpoint.part_of(name))}))
    if kind in ("language_model", "llama_meta"):
        if max(_norm_scales(tensors), default=1.0) < SMALLEST_NORM:
            kind, what = "vicuna_delta", f"{what}, of a delta that was not applied to LLaMA"
        return Probe(kind, what, "it belongs into a folder with config.json and its other files", width)
    layers = LLAMA[width][1] if width in LLAMA else 0
    if kind in ("pandagpt", "anomalygpt") and layers:
        what += "; which of this size the tensors do not say"
    # Of PandaGPT the projection, and A and B of q, k, v and o in each layer; of AnomalyGPT the prompt learner.
    counts = {"imagebind": ("", 1311), "pandagpt": ("ll", 2 + 8 * layers), "anomalygpt": ("prompt_learner.", 13)}
    prefix, wanted = counts.get(kind, ("", 0))
    present = sum(name.startswith(prefix) for name in shapes)
    fault = f"{present} of {wanted} tensors" if wanted != present and (layers or kind == "imagebind") else ""
    return Probe(kind, what, fault, width, parts)


def _norm_scales(tensors: Mapping[str, Tensor]) -> list[float]:
    """The mean magnitude of the weights of each normalisation layer."""
    norms = [v for n, v in tensors.items() if n.endswith("norm.weight") and v.dim() == 1 and v.is_floating_point()]
    return [float(value[:8192].float().abs().mean()) for value in norms]


def _probe_meta(folder: Path) -> Probe:
    """LLaMA as Meta released it: a file for each GPU that it was trained on."""
    parts = sorted(folder.glob("consolidated.*.pth"))
    try:
        settings = json.loads((folder / "params.json").read_text(encoding="utf-8"))
        width = int(settings["dim"])
        rows = sum(read_tensors(part)["layers.0.attention.wq.weight"].shape[0] for part in parts)
        kind, what = ("llama_2", "Llama 2") if _is_llama_2(settings) else ("llama_meta", "LLaMA")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Probe("llama_meta", "LLaMA in Meta's own layout", f"unreadable ({_reason(error, folder)})")
    size = LLAMA.get(width, (f"{width} wide",))[0]
    fault = "" if rows == width else f"{len(parts)} consolidated.*.pth hold {rows} of {width} rows: parts are missing"
    return Probe(kind, f"{what} {size} in Meta's own layout", fault, width)


def _probe_language_model(folder: Path) -> Probe:
    shapes: dict[str, Shape] = {}
    scales, file = [], folder
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        for file in checkpoint.weight_files(folder):
            tensors = read_tensors(file)
            shapes |= shapes_of(tensors)
            scales += _norm_scales(tensors)
        rows, width = (*shapes.get("model.embed_tokens.weight", ()), 0, 0)[:2]
        kind, what = "language_model", f"a language model of type {config.get('model_type')} with {rows} rows"
        if config.get("model_type") == "llama" and rows in (LLAMA_ROWS, LLAMA_ROWS + 1):
            kind, what = _llama(folder, config, rows, max(scales, default=1.0))
    except (OSError, ValueError, TypeError) as error:  # CheckpointError is a ValueError
        return Probe("language_model", f"a language model's folder, with {file.name}", _reason(error, file))
    size = LLAMA.get(width, (f"{width} wide",))[0]
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    fault = ""
    if layers and len(layers) != (wanted := config.get("num_hidden_layers")):
        fault = f"{len(layers)} of {wanted} layers"
    elif not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        fault = "no tokeniser: tokenizer.model or tokenizer.json"
    return Probe(kind, f"{what}, {size}", fault, width)


def _llama(folder: Path, config: Mapping[str, Any], rows: int, scale: float) -> tuple[str, str]:
    """The kind of a model of LLaMA's architecture, and the same in words with the reason."""
    called = folder.absolute().name.lower()
    name = f"{config.get('_name_or_path')} {called}".lower()
    rest = "the files do not say more"
    if scale < SMALLEST_NORM:
        version = "0" if rows > LLAMA_ROWS else "1.1"
        return "vicuna_delta", f"a Vicuna delta (version {version}) that was not applied: its norms are near zero"
    if _is_llama_2(config):
        which = "Vicuna v1.5" if "vicuna" in name else f"Llama 2 or a model made of it, such as Vicuna v1.5; {rest}"
        return "llama_2", f"{which} (max_position_embeddings or rms_norm_eps are Llama 2's)"
    if rows > LLAMA_ROWS:
        return "vicuna_v0", f"Vicuna version 0 ({rows} rows)"
    if hit := re.search(r"vicuna.*v1\.[13]", name):
        return "vicuna_v1", f"Vicuna v{hit[0][-3:]} by its name"
    if re.search(r"llama[-_]?\d+b", called):  # _name_or_path names LLaMA in Vicunas that FastChat made, too
        return "llama", "LLaMA without Vicuna's delta, by its folder's name"
    return "llama_or_vicuna", f"LLaMA, Vicuna v1.1, or version 0 without its padding row ({rows} rows); {rest}"


def _is_llama_2(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` or ``params.json`` is that of Llama 2, or of a model made of it."""
    epsilon = config.get("rms_norm_eps", config.get("norm_eps", 0))
    return config.get("max_position_embeddings", 0) >= 4096 or epsilon > 5e-6


def _reason(error: Exception, path: Path) -> str:
    return " ".join(str(error).split()).removeprefix(f"{path}: ") or type(error).__name__
