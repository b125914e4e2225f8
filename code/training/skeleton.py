"""The model as shapes without values (torch's meta device): what a run will hold, before any weight is read."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import EncoderConfig, ExperimentConfig, LlmConfig
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import CheckpointError, folder_shapes
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.llm import EMBEDDING, add_lora
from anomalygpt.model.prompt_ensemble import LearnedStates
from anomalygpt.model.prompt_learner import PromptLearner

# LLaMA's published sizes (Touvron et al., 2023, table 2), of which Vicuna is: by how a folder's name begins.
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


@dataclass(frozen=True)
class Skeleton:
    """Attributes:
    model: all of its tensors are on the meta device; it can't compute.
    llm: the language model's own config (Hugging Face's), None without one or where its size is unknown.
    unknown: a line for each thing that is absent, and what was taken for it.
    """

    model: AnomalyGPT
    llm: Any
    unknown: tuple[str, ...]


def build_skeleton(config: ExperimentConfig, *, speaks: bool = True) -> Skeleton:
    """Every part's shapes; weight files need not be there.

    Args:
        speaks: False leaves the language model out, as ``build_model`` does.
    """
    unknown = [f"{path}: not there yet" for path in _absent(config, speaks)]
    llm_config = None
    if speaks and config.llm is not None:
        llm_config, remarks = _llm_config(config.llm)
        unknown += remarks
    encoder = encoder_skeleton(config.encoder)
    spec = encoder.spec
    with torch.device("meta"):
        decoder = ImageDecoder(spec.tap_width, spec.embed_width, len(spec.taps))
        has_text = hasattr(encoder, "encode_text")
        states: Any = _TextStates() if has_text else LearnedStates(spec.embed_width)
        speech = _speech(config.llm, llm_config, spec.embed_width) if config.llm and llm_config else {}
        model = AnomalyGPT(encoder, states, decoder, **speech)
    return Skeleton(model.requires_grad_(False), llm_config, tuple(unknown))


def encoder_skeleton(config: EncoderConfig) -> Any:
    """The image encoder without values; its ``spec`` says what photos it takes."""
    with torch.device("meta"):
        if config.name == "imagebind_huge":
            from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize

            return ImageBind(ImageBindSize(image_size=config.image_size), config.taps)
        from anomalygpt.model.dinov2 import Dinov2

        return Dinov2(config.image_size, config.taps)


class _TextStates(nn.Module):
    """Stands for the features of a text tower, which have no parameters of their own."""


def _absent(config: ExperimentConfig, speaks: bool) -> list[str]:
    named = [config.encoder.weights, *(delta.path for delta in config.deltas)]
    named += [config.llm.weights] if config.llm and speaks else []
    return [path for path in named if not resolve(path).exists()]


def _llm_config(config: LlmConfig) -> tuple[Any, list[str]]:
    """(the language model's config or None, remarks)."""
    from transformers import AutoConfig, LlamaConfig

    folder = resolve(config.weights)
    if (folder / "config.json").is_file():
        try:
            found = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            return None, [f"{folder / 'config.json'}: not a model config ({str(error).splitlines()[0]})"]
        try:
            found.vocab_size = folder_shapes(folder).get(EMBEDDING, (found.vocab_size,))[0]
        except CheckpointError as error:
            return found, [f"{error}: sizes are config.json's"]
        return found, []
    size = next((size for size in LLAMA_SIZES if folder.name.lower().startswith(f"{size}_")), None)
    if size is None:
        return None, [f"{folder}: no config.json there, so the language model's size is unknown and not counted"]
    return LlamaConfig(**LLAMA_SIZES[size]), [f"{folder}: no config.json there; taken to be LLaMA-{size.upper()}"]


def _speech(config: LlmConfig, llm_config: Any, embed_width: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    width = llm_config.hidden_size
    llm = AutoModelForCausalLM.from_config(llm_config)
    return {
        "prompt_learner": PromptLearner(width),
        "llm": add_lora(llm, config.lora),
        "llama_proj": nn.Linear(embed_width, width),
    }
