"""Weight files: read tensors only, compare every name and shape, say what a file is, write atomically."""

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anomalygpt.errors import UserError, first_line, first_offenders, reading
from anomalygpt.files import replacing

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
LLAMA = {4096: ("7B", 32), 5120: ("13B", 40)}  # the sizes of LLaMA and Vicuna, by width: name and layers
LLAMA_ROWS = 32000  # tokens of LLaMA; Vicuna version 0 has one more, for padding
# RMSNorm's weights average between 0.3 and 2 in trained LLaMAs. A delta holds their change by fine-tuning, about 0.01.
SMALLEST_NORM = 0.1
HASHED_TENSORS, HASHED_VALUES = 8, 65536  # so many of the weights, and so many values of each, identify an encoder
CUT = "it is damaged or was not fully downloaded"
# How files of other kinds begin, and what to say; the last that fits is said.
OTHER_FILES = (
    (rb"[\s\x20-\x7e]+$", "text, which begins with {!r}"),
    (rb"version https://git-lfs", "a pointer of Git LFS to it: run `git lfs pull`"),
    (rb"<!doctype|<html", "a web page: download the file itself; of a Hugging Face link, with /resolve/"),
    (rb"\x1f\x8b", "an archive: unpack it"),
    (rb"gguf", "a GGUF file, for llama.cpp: get the weights in Hugging Face's layout"),
)
# Under these names DeepSpeed, Lightning and training loops nest a model's tensors.
WRAPPERS = ("state_dict", "model_state_dict", "module", "model")

PARTS = ("image_decoder", "prompt_learner", "states", "llama_proj", "lora")  # of a delta checkpoint


class CheckpointError(UserError, ValueError):
    """A weight file is missing, damaged, or not the one that the model needs; the message is meant for the user."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors, .pt, .pth or .bin file, memory-mapped; no code in the file is run.

    Raises :class:`CheckpointError`: it is missing, damaged, or holds something other than named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'this is a folder, a file was expected' if path.is_dir() else 'no such file'}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        mapped = is_zipfile(path)  # torch before 1.6 wrote another format, which can't be mapped
        if mapped and any(entry.compress_type for entry in ZipFile(path).infolist()):
            raise pickle.UnpicklingError("torch.save compresses nothing, and what is compressed may fill the memory")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # unpickling bytes that are no pickle can raise nearly anything
        raise _unreadable(path, error) from error
    loaded = _unwrapped(loaded)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found a {type(loaded).__name__}")
    others = [f"{key} ({type(value).__name__})" for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found one with {first_offenders(others)}")
    return dict(loaded)


def _unwrapped(loaded: Any) -> Any:
    """A model's tensors without what training programs save beside them, and without the prefix that they add."""
    for key in WRAPPERS:
        inner = loaded.get(key) if isinstance(loaded, Mapping) else None
        if isinstance(inner, Mapping) and inner:
            for prefix in ("module.", "model."):
                if all(str(name).startswith(prefix) for name in inner):
                    inner = {str(name).removeprefix(prefix): value for name, value in inner.items()}
            return _unwrapped(inner)
    return loaded


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that could not be read: of another kind, cut off, damaged, or with objects."""
    with path.open("rb") as file:
        start = file.read(512)
    kinds = [meaning for pattern, meaning in OTHER_FILES if re.match(pattern, start.lstrip(), re.IGNORECASE)]
    zipped, tensors = start.startswith(b"PK"), path.suffix == ".safetensors" and start[8:9] == b"{"
    if kinds:
        what = f"not a weight file but {kinds[-1].format(start.strip()[:64].decode(errors='replace'))}"
    elif not start or tensors or (zipped and not is_zipfile(path)):
        what = f"cut off at {path.stat().st_size} bytes: {CUT}"
    elif isinstance(error, pickle.UnpicklingError):
        what = "not a weight file; it is damaged, or holds objects other than tensors, which are never loaded"
    else:
        what = f"can't be read; {CUT} ({type(error).__name__}: {first_line(error)})"
    return CheckpointError(f"{path}: {what}")


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file; empty for any other."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face folder, sharded or not. Raises :class:`CheckpointError`: one is not there."""
    # In transformers' order.
    names = [name + suffix for name in ("model.safetensors", "pytorch_model.bin") for suffix in ("", ".index.json")]
    present = next((folder / name for name in names if (folder / name).is_file()), None)
    if present is None:
        raise CheckpointError(f"{folder}: no weights there; expected one of {', '.join(names)}")
    if present.suffix != ".json":
        return [present]
    with reading(present, "an index of weight shards", CheckpointError):
        shards = sorted({*json.loads(present.read_text(encoding="utf-8"))["weight_map"].values()})
        absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        lack = f"{len(absent)} of {len(shards)} weight shards are missing: {first_offenders(absent)}"
        raise CheckpointError(f"{folder}: {lack}")
    return [folder / shard for shard in shards]


def check_names(
    expected: Mapping[str, Shape], found: Mapping[str, Shape], path: Path, ignore: str = "", advice: str = ""
) -> None:
    """Compares two sets of names and shapes; names that match ``ignore`` may be in the file without being expected.

    Raises :class:`CheckpointError`: they differ; says what is missing, unexpected or of another shape, and ``advice``.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(name for name in found.keys() - expected.keys() if not (ignore and re.match(ignore, name)))
    common = [(name, found[name], shape) for name, shape in expected.items() if name in found]
    differ = [f"{name} is {own}, expected {shape}" for name, own, shape in common if own != shape]
    faults = ((missing, f"of {len(expected)} tensors missing"), (extra, "unexpected"), (differ, "of another shape"))
    if told := "; ".join(f"{len(names)} {fault} ({first_offenders(names)})" for names, fault in faults if names):
        kind = identify(found)
        guess = f" This looks like {kind[1]}." if kind else ""
        raise CheckpointError(f"{path}: not the expected weights: {told}.{guess}{advice and ' ' + advice}")


def identify(shapes: Mapping[str, Shape]) -> tuple[str, str, int] | None:
    """What a file probably is: the kind of a :class:`Probe`, the same in words, and a language model's width or 0."""
    sizes = {name.removeprefix("prompt_learner."): shape for name, shape in shapes.items() if len(shape) == 2}
    for kind, whose, table, index in (
        ("anomalygpt", "an AnomalyGPT delta for {}: its prompts are {} wide", "base_prompts", 1),
        ("pandagpt", "an upstream PandaGPT delta for {}: llama_proj is {} wide", "llama_proj.weight", 0),
    ):
        if width := sizes.get(table, (0, 0))[index]:
            return kind, whose.format(LLAMA.get(width, ("a language model",))[0], width), width
    for kind, pattern, table, what in (
        ("imagebind", "modality_trunks", "", f"an ImageBind checkpoint with {len(shapes)} tensors, of 1311"),
        ("anomalygpt", "image_decoder", "", "an AnomalyGPT delta for maps alone"),
        ("lora", r".*\.lora_", "", "a LoRA adapter without its llama_proj"),
        ("language_model", r"model\.(layers|embed_tokens)", "model.embed_tokens.weight", "a language model"),
        ("llama_meta", "layers|tok_embeddings", "tok_embeddings.weight", "a language model in Meta's layout"),
        ("open_clip", r"visual\.class_embedding", "", "a CLIP model in open_clip's layout"),
        ("vit", "cls_token", "", "a Vision Transformer of timm"),
    ):
        if any(re.match(pattern, name) for name in shapes):
            return kind, what, sizes.get(table, (0, 0))[1]
    return None


def load_module(module: nn.Module, path: Path, device: torch.device, dtype: torch.dtype, skipped: str = "") -> None:
    """Fills a module that was built on the meta device from a file; names that match ``skipped`` are not loaded.

    Each tensor is moved from the mapped file to its device and dtype separately: there is never a second full copy.
    """
    own, tensors = shapes_of(module.state_dict()), read_tensors(path)
    check_names(own, shapes_of(tensors), path, skipped, "`python check_weights.py` says where it comes from.")
    module.load_state_dict({name: tensors.pop(name).to(device, dtype) for name in own}, strict=True, assign=True)


def delta_name(name: str) -> str:
    """A released tensor's name in current PEFT: without data parallel's prefix, with the adapter's name ``default``."""
    return re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", name.removeprefix("module."))


def part_of(name: str) -> str | None:
    """The part that a delta's tensor belongs to; None for any other tensor."""
    first = name.partition(".")[0]
    if first == "llama_model":
        return "lora" if ".lora_" in name else None
    return first if first in PARTS else None


def delta_shapes(model: nn.Module, parts: Collection[str]) -> dict[str, Shape]:
    """Names and shapes of the model's tensors in some of the parts."""
    return {name: shape for name, shape in shapes_of(model.state_dict()).items() if part_of(name) in parts}


def load_delta(model: nn.Module, path: Path, required: Collection[str], skip: Collection[str] = ()) -> set[str]:
    """Loads a delta into the model, each part completely but those in ``skip``; returns the parts that it holds."""
    tensors = {delta_name(name): value for name, value in read_tensors(path).items()}
    tensors = {name: value for name, value in tensors.items() if part_of(name) not in skip}
    parts = {part for name in tensors if (part := part_of(name))} | set(required)
    needs = ", ".join(part for part in PARTS if part in required)
    advice = f"It should hold {needs} for this model; check the path in the config."
    check_names(delta_shapes(model, parts), shapes_of(tensors), path, advice=advice)
    model.load_state_dict(tensors, strict=False)  # the sets were compared above
    logger.info("%s: loaded %s (%d tensors)", path, ", ".join(sorted(parts)), len(tensors))
    return parts


def delta_tensors(model: nn.Module, parts: Collection[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies of the model's tensors in some of the parts, on the CPU, under their released names."""
    state = {name: value.detach() for name, value in model.state_dict().items() if part_of(name) in parts}
    return {name: value.to("cpu", dtype or value.dtype).contiguous().clone() for name, value in state.items()}


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes .safetensors (with metadata) or .pt, whole or not at all. Raises :class:`CheckpointError`: it can't."""
    try:
        with replacing(path) as temporary:
            if path.suffix == ".safetensors":
                save_file(dict(tensors), temporary, metadata=dict(metadata or {}))
            else:
                torch.save(dict(tensors), temporary)
    except (SafetensorError, RuntimeError) as error:  # torch.save's is a RuntimeError
        raise CheckpointError(f"{path}: could not be written ({error})") from error


def fingerprint(encoder: nn.Module) -> str:
    """A hash of some of the weights, the same whether they are held in single or in half precision."""
    named = sorted(encoder.named_parameters())
    digest = hashlib.sha256()
    for name, value in named[:: max(1, len(named) // HASHED_TENSORS)]:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:HASHED_VALUES].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    """Recognises a weight file, or the folder of a language model, of a delta or of a training"""
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
        return Probe("unreadable", first_line(error).removeprefix(f"{path}: "), "it can't be loaded")
    shapes = {delta_name(name): shape for name, shape in shapes_of(tensors).items()}
    kind, what, width = identify(shapes) or ("unknown", f"{len(shapes)} tensors of an unknown model", 0)
    parts = tuple(sorted({part for name in shapes if (part := part_of(name))}))
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
        return Probe("llama_meta", "LLaMA in Meta's own layout", f"unreadable ({first_line(error)})")
    size = LLAMA.get(width, (f"{width} wide",))[0]
    fault = "" if rows == width else f"{len(parts)} consolidated.*.pth hold {rows} of {width} rows: parts are missing"
    return Probe(kind, f"{what} {size} in Meta's own layout", fault, width)


def _probe_language_model(folder: Path) -> Probe:
    shapes: dict[str, Shape] = {}
    scales, file = [], folder
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        for file in weight_files(folder):
            tensors = read_tensors(file)
            shapes |= shapes_of(tensors)
            scales += _norm_scales(tensors)
        rows, width = (*shapes.get("model.embed_tokens.weight", ()), 0, 0)[:2]
        kind, what = "language_model", f"a language model of type {config.get('model_type')} with {rows} rows"
        if config.get("model_type") == "llama" and rows in (LLAMA_ROWS, LLAMA_ROWS + 1):
            kind, what = _llama(folder, config, rows, max(scales, default=1.0))
    except (OSError, ValueError, TypeError) as error:  # CheckpointError is a ValueError
        reason = first_line(error).removeprefix(f"{file}: ")
        return Probe("language_model", f"a language model's folder, with {file.name}", reason)
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
