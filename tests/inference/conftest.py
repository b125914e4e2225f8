"""The whole road with small random parts: what it computes means nothing, how it is put together is the product's."""

import pytest
import torch
from torch import nn

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.imagebind.imagebind import ImageBind, ImageBindSize
from anomalygpt.model.prompt_ensemble import PromptEnsemble
from anomalygpt.model.prompt_learner import PromptLearner
from tests.model.test_chat import Letters

WIDTH = 32
SIZE = ImageBindSize(
    image_size=112,
    vision_width=32,
    vision_depth=4,
    vision_heads=2,
    text_width=16,
    text_depth=1,
    text_heads=2,
    joint_width=16,
)


def thin(seed: int = 0) -> AnomalyGPT:
    """An 8 x 8 grid of patches, four taps 32 wide, texts that are embedded, a language model that babbles letters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    encoder = ImageBind(SIZE)
    config = LlamaConfig(
        vocab_size=0x10000,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    parts = (ImageDecoder(32, 16, 4), PromptLearner(WIDTH), LlamaForCausalLM(config), nn.Linear(16, WIDTH), Letters())
    return AnomalyGPT(encoder, PromptEnsemble(encoder), *parts).requires_grad_(False).eval()


@pytest.fixture(scope="session")
def thin_model() -> AnomalyGPT:
    return thin()


@pytest.fixture(scope="session")
def thin_transform(thin_model: AnomalyGPT) -> ImageTransform:
    spec = thin_model.encoder.spec
    return ImageTransform(spec.size, spec.mean, spec.std, "squash")
