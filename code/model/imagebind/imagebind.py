"""ImageBind (Girdhar et al., CVPR 2023): vision and text towers with the released tensor names (specification 1)."""

import math
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anomalygpt.model.encoder import ImageFeatures, ImageSpec, resized_positions, tapped_blocks, through_blocks
from anomalygpt.model.imagebind.tokenizer import CONTEXT_LENGTH, tokenize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LAYER_NORM_EPS, MLP_RATIO = 1e-6, 4
FRAMES = 2  # ImageBind treats a still image as a clip of two identical frames


@dataclass(frozen=True)
class ImageBindSize:
    """The sizes of both towers; the defaults are ImageBind-Huge."""

    image_size: int = 224
    patch: int = 14
    vision_width: int = 1280
    vision_depth: int = 32
    vision_heads: int = 16
    text_width: int = 1024
    text_depth: int = 24
    text_heads: int = 16
    joint_width: int = 1024


def attend(packed: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention on packed queries, keys and values: (B, N, 3 * width) -> (B, N, width)."""
    q, k, v = rearrange(packed, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=heads)
    return rearrange(F.scaled_dot_product_attention(q, k, v, is_causal=causal), "b heads n d -> b n (heads d)")


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention; the base class has the parameters by the released names."""

    def forward(self, x: Tensor, causal: bool) -> Tensor:  # type: ignore[override]
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        return self.out_proj(attend(packed, self.num_heads, causal))


def mlp(width: int, linear: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Two linear layers with the exact (erf) GELU between them."""
    first, second = linear(width, MLP_RATIO * width), linear(MLP_RATIO * width, width)
    return nn.Sequential(OrderedDict(fc1=first, gelu=nn.GELU(), fc2=second))


class Block(nn.Module):
    """One pre-norm block: attention, then MLP, each added to its input."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.attn, self.mlp = SelfAttention(width, heads), mlp(width)
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=LAYER_NORM_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x), self.causal)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """A stack of pre-norm blocks: ``causal`` for text, else with a LayerNorm before the first."""

    def __init__(self, width: int, depth: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(*([] if causal else [nn.LayerNorm(width, eps=LAYER_NORM_EPS)]))
        self.blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(depth))

    def forward(self, x: Tensor, taps: Collection[int] = ()) -> tuple[Tensor, list[Tensor]]:
        return through_blocks(self.blocks, self.pre_transformer_layer(x), taps)


class VisionStem(nn.Module):
    """Image -> tokens with their positions."""

    def __init__(self, width: int, image_size: int, patch: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        kernel = nn.Conv3d(3, width, (FRAMES, patch, patch), bias=False)
        self.rgbt_stem = nn.ModuleDict({"proj": nn.ModuleDict({"1": kernel})})
        positions = 0.02 * torch.randn(1, 1 + (image_size // patch) ** 2, width)  # CLS first
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": positions})

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + P * P, width), CLS first."""
        # Both frames are the same image, so the kernel is summed over its time axis.
        kernel = self.rgbt_stem["proj"]["1"].weight.sum(dim=2)  # type: ignore[index]
        patches = F.conv2d(images, kernel, stride=kernel.shape[-1])
        positions = resized_positions(self.pos_embedding_helper["pos_embed"], patches.shape[-2:])
        cls = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls, rearrange(patches, "b d h w -> b (h w) d")], dim=1) + positions


class ImageBind(nn.Module):
    """Vision and text towers in one joint space; the other modalities of the released file are not built."""

    def __init__(self, size: ImageBindSize | None = None, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        size = size or ImageBindSize()
        width, text_width, joint_width = size.vision_width, size.text_width, size.joint_width
        grid, blocks = size.image_size // size.patch, tapped_blocks(taps, size.vision_depth)
        self.spec = ImageSpec(size.image_size, CLIP_MEAN, CLIP_STD, grid, width, blocks, joint_width, any_size=True)
        vision = Trunk(width, size.vision_depth, size.vision_heads, causal=False)
        text = Trunk(text_width, size.text_depth, size.text_heads, causal=True)
        vision_stem = VisionStem(width, size.image_size, size.patch)
        text_stem = nn.Module()
        text_stem.token_embedding = nn.Embedding(49408, text_width)
        text_stem.pos_embed = nn.Parameter(0.01 * torch.randn(1, CONTEXT_LENGTH, text_width))
        # The four dictionaries give the released names, and the identities keep the layer numbers.
        self.modality_preprocessors = nn.ModuleDict({"vision": vision_stem, "text": text_stem})
        self.modality_trunks = nn.ModuleDict({"vision": vision, "text": text})
        norms = [nn.LayerNorm(each, eps=LAYER_NORM_EPS) for each in (width, text_width)]
        vision_head = nn.Sequential(norms[0], nn.Identity(), nn.Linear(width, joint_width, bias=False))
        text_head = nn.ModuleDict({"proj": nn.Sequential(norms[1], nn.Linear(text_width, joint_width, bias=False))})
        self.modality_heads = nn.ModuleDict({"vision": vision_head, "text": text_head})
        # A buffer, for it is never trained, and DeepSpeed's broadcast fails at a parameter without dimensions.
        scale = nn.Module()
        scale.register_buffer("log_logit_scale", torch.tensor(math.log(1 / 0.07)))
        self.modality_postprocessors = nn.ModuleDict({"text": nn.ModuleList([nn.Identity(), scale])})

    @property
    def text_tower(self) -> nn.Module:
        groups = self.modality_preprocessors, self.modality_trunks, self.modality_heads, self.modality_postprocessors
        return nn.ModuleList(group["text"] for group in groups)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, 3, S, S), CLIP-normalised -> taps of (B, (S / 14)^2, 1280) and a unit embedding (B, 1024)."""
        tokens = self.modality_preprocessors["vision"](images)
        tokens, taps = self.modality_trunks["vision"](tokens, self.spec.taps)
        embedding = F.normalize(self.modality_heads["vision"](tokens[:, 0]), dim=-1)
        return ImageFeatures(taps=tuple(tap[:, 1:] for tap in taps), embedding=embedding)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> (B, 1024): unit embeddings times the learned, clipped temperature."""
        stem: Any = self.modality_preprocessors["text"]
        ids = tokenize(sentences).to(stem.pos_embed.device)  # (B, 77) int64
        ends = ids.argmax(dim=1)  # the end-of-text token has the largest id
        # Causal attention: nothing after the last of them can change a sentence's embedding.
        longest = int(ends.max()) + 1
        tokens = stem.token_embedding(ids[:, :longest]) + stem.pos_embed[:, :longest]
        tokens, _ = self.modality_trunks["text"](tokens)
        embedded = self.modality_heads["text"]["proj"](tokens[torch.arange(len(ids)), ends])  # type: ignore[index]
        scale = self.modality_postprocessors["text"][1].log_logit_scale  # type: ignore[index]
        return F.normalize(embedded, dim=-1) * scale.exp().clamp(max=100)
