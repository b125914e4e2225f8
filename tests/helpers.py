"""Small models, their weight files, and stand-ins, shared by the tests of several folders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize
from anomalygpt.model.llm import LoraSettings, add_lora
from anomalygpt.model.prompt_ensemble import PromptEnsemble
from anomalygpt.model.prompt_learner import PromptLearner

TINY = ImageBindSize(
    vision_width=32, vision_depth=4, vision_heads=2, text_width=16, text_depth=1, text_heads=2, joint_width=16
)


@dataclass(frozen=True)
class Said:
    """A turn of a conversation."""

    role: str
    text: str


class Letters:
    """A tokeniser with one token per letter, its code point."""

    bos_id, eos_id = 1, 2

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > 2)


def llama_config(rows: int = 320, width: int = 32, layers: int = 2, **changes: Any) -> LlamaConfig:
    settings = {"num_attention_heads": 4, "intermediate_size": 48, "tie_word_embeddings": False, **changes}
    return LlamaConfig(vocab_size=rows, hidden_size=width, num_hidden_layers=layers, **settings)


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """A random LLaMA, the same at each call; the arguments are those of :func:`llama_config`."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def tiny_model(
    seed: int = 0, image_size: int = 224, rows: int = 256, layers: int = 2, lora: LoraSettings | None = None
) -> AnomalyGPT:
    """The complete model with random parts: four taps 32 wide, a language model 32 wide that writes random letters."""
    torch.manual_seed(seed)
    encoder = ImageBind(replace(TINY, image_size=image_size)).requires_grad_(False)
    decoder, learner = ImageDecoder(TINY.vision_width, TINY.joint_width, 4), PromptLearner(32)
    llm = LlamaForCausalLM(llama_config(rows, 32, layers)).requires_grad_(False)
    projection = nn.Linear(TINY.joint_width, 32)
    llm = add_lora(llm, lora) if lora else llm
    return AnomalyGPT(encoder, PromptEnsemble(encoder), decoder, learner, llm, projection, Letters()).eval()


def write_encoder(path: Path) -> None:
    """DINOv2's tensors by name and shape, with random values."""
    from anomalygpt.model.dinov2 import Dinov2

    with torch.device("meta"):
        vit = Dinov2().vit
    generator = torch.Generator().manual_seed(0)
    save_file({n: 0.02 * torch.randn(v.shape, generator=generator) for n, v in vit.state_dict().items()}, path)


def write_llm(folder: Path) -> None:
    """A two-layer LLaMA that reads bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    tiny_llama(rows=len(vocabulary), intermediate_size=64, bos_token_id=0, eos_token_id=1).save_pretrained(folder)
