"""Config -> model: which part has which size, and where its weights are; with values, or as shapes alone for a plan."""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalygpt.config.load import PRETRAINED, load_config, names, nor, resolve
from anomalygpt.config.schema import DeltaConfig, EncoderConfig, ExperimentConfig, LlmConfig
from anomalygpt.errors import UserError
from anomalygpt.model import checkpoint
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import TemplateTokenizer
from anomalygpt.model.checkpoint import PARTS, CheckpointError, shapes_of
from anomalygpt.model.dinov2 import Dinov2
from anomalygpt.model.encoder import ImageSpec
from anomalygpt.model.exported import ExportedEncoder
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize
from anomalygpt.model.library_encoders import OpenClip, TimmEncoder
from anomalygpt.model.llm import add_lora, load_llm, planned_config
from anomalygpt.model.merged_llama import MergedLlama, cpu_dtype, supported
from anomalygpt.model.prompt_ensemble import LearnedTextFeatures, PromptEnsemble
from anomalygpt.model.prompt_learner import PromptLearner
from anomalygpt.model.tokenizer import load_tokenizer
from anomalygpt.weights.fetch import WeightsUnavailable, ensure, hub_folder, load_sources

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAP_PARTS = ("image_decoder", "states")  # what draws the map; all else with_llm
META = torch.device("meta")
# What files have beside the encoder, by its kind: a classifier; ImageBind's other modalities and its causal mask.
SKIPPED = {
    "timm": r"head\.",
    "imagebind": r"modality_[a-z]+\.(audio|depth|thermal|imu)\.|modality_preprocessors\.text\.mask$",
}


def choose_device(name: str = "auto") -> torch.device:
    """``auto``: the first CUDA device where there is one, else the CPU. Raises :class:`UserError`: no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r}: not on this machine; expected auto, cpu, cuda or cuda:N") from error
    return torch.device(name)


def missing_weights(config: ExperimentConfig, *, all_absent: bool = False) -> list[Path]:
    """The weight files and folders of an experiment that are absent and, unless ``all_absent``, can't be fetched."""
    paths = [config.encoder.weights, *(delta.path for delta in _needed(config, config.own_llm is not None))]
    paths += [config.llm.weights] if config.llm and config.llm.weights and not is_hub_name(config.llm.weights) else []
    return [path for path in map(resolve, paths) if not path.exists() and (all_absent or fetchable(path) is None)]


def is_hub_name(path: str) -> bool:
    """Whether ``llm.weights`` is the name of a model on the Hugging Face hub, ``owner/name``, and no folder here."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", path)) and not resolve(path).parent.exists()


def local_llm(path: str) -> Path:
    """The folder of ``llm.weights`` as it is now, there or not: a model of the hub is looked for in the hub's cache."""
    if is_hub_name(path):
        with suppress(WeightsUnavailable):
            return hub_folder(path, offline=True)
    return resolve(path)


def _needed(config: ExperimentConfig, with_llm: bool) -> list[DeltaConfig]:
    """The deltas that are read: maps need no file of the language model."""
    return [delta for delta in config.deltas if with_llm or set(delta.parts) & set(MAP_PARTS)]


def fetchable(path: Path) -> str | None:
    """The name under which a weight can be downloaded; None when the user has to provide it."""
    root = resolve(PRETRAINED)
    return next((name for name, weight in load_sources().items() if path == root / weight.path), None)


def installed_config() -> str:
    """The paper's experiment where all of its weights are there, else the compact one."""
    return "compact" if missing_weights(load_config("imagebind_vicuna7b")) else "imagebind_vicuna7b"


def build_model(
    config: ExperimentConfig, device: torch.device | None = None, *, with_llm: bool = True, inference: bool = False
) -> AnomalyGPT:
    """Builds every part, loads its weights, and joins them, in evaluation mode.

    On ``meta`` the parts have shapes but no values, and no weight file is needed; a language model of unknown size (see
    :func:`planned_config`) is left out, as it is without ``with_llm``: the model then only computes maps. For
    ``inference`` nothing will be trained: the text tower leaves a GPU when its features are cached. Raises
    :class:`CheckpointError` or :class:`WeightsUnavailable`: a file is missing, damaged or another model's.
    """
    device = device or choose_device()
    auto = "fp32" if device.type == "cpu" else "fp16"  # fp16 as in the released code
    dtype = DTYPES[auto if config.precision == "auto" else config.precision]
    if device.type == "cpu" and dtype == torch.bfloat16:
        dtype = cpu_dtype()
    llm = config.own_llm if with_llm else None
    # Missing files are reported before gigabytes of others are read.
    needed = _needed(config, llm is not None)
    files = [] if device == META else [available(delta.path, "deltas") for delta in needed]
    encoder = build_encoder(config.encoder, device, dtype)
    spec = encoder.spec
    with META if device == META else nullcontext():
        decoder = ImageDecoder(spec.tap_width, spec.embed_width, len(spec.taps), identity=spec.joint_taps).to(device)
        has_text = hasattr(encoder, "text_tower")
        offload = inference and device.type == "cuda"
        states = PromptEnsemble(encoder, offload) if has_text else LearnedTextFeatures(spec.embed_width).to(device)
        answering = _build_llm(llm, spec.embed_width, device, dtype, inference) if llm else {}
        if device != META and config.encoder.backend != "torch":
            folder, graph = resolve(config.encoder.weights).parent / "exported", config.encoder.graph
            encoder = ExportedEncoder(encoder, config.encoder.backend, folder, resolve(graph) if graph else None)
        model = AnomalyGPT(encoder, states, decoder, **answering)
    model.requires_grad_(False)
    if device == META:
        return model.eval()
    skipped = [] if model.has_llm else [part for part in PARTS if part not in MAP_PARTS]
    loaded: set[str] = set()
    for delta, file in zip(needed, files, strict=True):
        loaded |= checkpoint.load_delta(model, file, set(delta.parts).difference(skipped), skipped)
    loaded |= {"image_decoder"} if spec.joint_taps else set()  # which works untrained
    if untrained := [part for part in PARTS if part not in loaded and checkpoint.delta_shapes(model, [part])]:
        logger.warning("no file in `deltas` holds %s: initialised at random", ", ".join(untrained))
    if inference:
        if device.type == "cpu" and dtype == torch.float32 and hasattr(encoder, "pack"):
            encoder.pack()
        if isinstance(model.llama_model, MergedLlama):
            model.llama_model.merge()
    return model.eval()


def image_spec(config: EncoderConfig) -> ImageSpec:
    """The encoder's input and output sizes, without its weights."""
    return build_encoder(config, META, torch.float32).spec


def build_encoder(config: EncoderConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen image encoder with its weights; on ``meta`` without them."""
    make: dict[str, Callable[[], Any]] = {
        "imagebind": lambda: ImageBind(ImageBindSize(image_size=config.image_size), config.taps),
        "dinov2": lambda: Dinov2(config.image_size, config.taps),
        "timm": lambda: TimmEncoder(config.name, config.image_size, config.taps),
        "open_clip": lambda: OpenClip(config.name, config.image_size, config.taps, config.windows),
    }
    # Only these two have no buffers outside of their files, which would stay without values.
    with META if device == META or config.kind in ("imagebind", "dinov2") else nullcontext():
        encoder = make[config.kind]()
    if device != META:
        file = available(config.weights, "encoder.weights")
        checkpoint.load_module(_tower(encoder), file, device, dtype, SKIPPED.get(config.kind, ""))
        encoder.to(device, dtype)
    return encoder.requires_grad_(False).eval()


def encoder_fault(config: EncoderConfig, file: Path) -> str:
    """Why a readable weight file is not this encoder's; empty where it is."""
    expected = shapes_of(_tower(build_encoder(config, META, torch.float32)).state_dict())
    try:
        checkpoint.check_names(expected, shapes_of(checkpoint.read_tensors(file)), file, SKIPPED.get(config.kind, ""))
    except CheckpointError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""


def _tower(encoder: Any) -> nn.Module:
    """The module whose tensors a file holds: the encoder, or the library's model inside of it."""
    return getattr(encoder, "vit", None) or getattr(encoder, "clip", encoder)


def _build_llm(
    config: LlmConfig, embed_width: int, device: torch.device, dtype: torch.dtype, inference: bool
) -> dict[str, Any]:
    """The language model, its tokeniser and the layers before it, as keyword arguments of :class:`AnomalyGPT`."""
    llm: Any
    tokenizer = None
    if device == META:
        from transformers import AutoModelForCausalLM

        llm_config, _ = planned_config(local_llm(config.weights))
        if llm_config is None:
            return {}
        llm = AutoModelForCausalLM.from_config(llm_config)
    else:
        folder = available(config.weights, "llm.weights")
        tokenizer = load_tokenizer(folder, TemplateTokenizer if config.chat == "template" else None)
        auto = config.precision in ("auto", "bf16")
        merged = config.lora if auto and inference and supported(folder, config.lora) else None
        if merged and config.precision == "bf16" and device.type == "cpu":
            llm = MergedLlama(folder, merged, cpu_dtype(), device)
        else:
            precision = "full" if auto and not inference else config.precision
            llm = load_llm(folder, dtype, device, precision, trains=not inference, merged=merged)
    width = llm.get_input_embeddings().embedding_dim
    return {
        "prompt_learner": PromptLearner(width).to(device),
        "llm": llm if isinstance(llm, MergedLlama) else add_lora(llm, config.lora),
        "llama_proj": nn.Linear(embed_width, width).to(device),
        "tokenizer": tokenizer,
    }


def trainable_parts(model: AnomalyGPT, parts: Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """Marks these parts as trainable, all else as frozen. Raises :class:`UserError`: the model has no such part."""
    groups: dict[str, list[nn.Parameter]] = {part: [] for part in parts}
    for name, parameter in model.named_parameters():
        part = checkpoint.part_of(name)
        parameter.requires_grad_(part in groups)
        if part in groups:
            groups[part].append(parameter)
    if empty := [part for part, parameters in groups.items() if not parameters]:
        raise UserError(f"training.trainable: this model has no {', '.join(empty)}")
    return groups


def available(path: str, setting: str) -> Path:
    """The weight's path on disk, downloaded first where that is possible; else raises a ``CheckpointError``."""
    full = resolve(path)
    if full.exists():
        return full
    if name := fetchable(full):
        ensure(name, resolve(PRETRAINED))
        return full
    if setting == "llm.weights" and is_hub_name(path):
        return hub_folder(path)
    advice = "Put it there as pretrained_ckpt/README.md says (`python check_weights.py` prints the link), or use"
    advice += " `--config compact`, which needs none of the paper's weights"
    if (run := full.parent.name) in names() and full.parent.parent == resolve("runs"):
        advice = f"Train the experiment that writes it: python train.py --config {run}"
    raise CheckpointError(f"{full}: not there{nor(path)}. {advice}; or name another ({setting})")
