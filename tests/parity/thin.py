"""The thin model of the parity data: the released architecture at a size that runs in seconds."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize
from anomalygpt.model.llm import LoraSettings, add_lora
from anomalygpt.model.prompt_ensemble import PromptEnsemble
from anomalygpt.model.prompt_learner import PromptLearner
from tests.parity.weights import fill, tensor

HERE = Path(__file__).parent
LLM_WIDTH = 4096
LORA_SHRINK = 0.1

THIN = ImageBindSize(vision_depth=4, text_width=64, text_depth=2, text_heads=4)


def thin_inputs() -> dict[str, torch.Tensor]:
    return load_file(HERE / "thin_inputs.safetensors")


def thin_expected() -> dict[str, torch.Tensor]:
    return load_file(HERE / "thin_expected.safetensors")


def thin_imagebind() -> ImageBind:
    encoder = ImageBind(THIN).eval()
    fill(encoder)
    return encoder


def thin_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=LLM_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=32,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    llama = llama.to_empty(device="cpu").float()
    # The rotary frequencies are no part of the state dict, so the meta device left them undefined.
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config=config)
    fill(llama, prefix="llama.")
    return llama.eval()


def thin_model(tokenizer: object) -> AnomalyGPT:
    encoder = thin_imagebind()
    decoder = ImageDecoder(encoder.spec.tap_width, encoder.spec.embed_width, len(encoder.spec.taps))
    learner = PromptLearner(LLM_WIDTH)
    projection = nn.Linear(encoder.spec.embed_width, LLM_WIDTH)
    fill(decoder, "image_decoder.")
    fill(learner, "prompt_learner.")
    fill(projection, "llama_proj.")
    llm = add_lora(thin_llama(), LoraSettings(dropout=0.0)).eval()
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                parameter.copy_(LORA_SHRINK * tensor("llama_model." + name, parameter.shape))
    return AnomalyGPT(encoder, PromptEnsemble(encoder), decoder, learner, llm, projection, tokenizer).eval()
