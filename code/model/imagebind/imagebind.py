"""ImageBind (Girdhar et al., CVPR 2023): vision and text towers with the released tensor names (specification 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anomalygpt.model.encoder import ImageFeatures, ImageSpec, tapped_blocks
from anomalygpt.model.imagebind.tokenizer import CONTEXT_LENGTH, tokenize
from anomalygpt.model.imagebind.transformer import LAYER_NORM_EPS, Trunk

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
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


class PatchProjection(nn.Module):
    """The clip's patch embedding, stored as the released 3-D kernel and applied as the equivalent 2-D one."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, FRAMES, patch, patch))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P * P, width), P = S / patch."""
        # Both frames are the same image, so the kernel is summed over its time axis.
        kernel = self.weight.sum(dim=2)
        return rearrange(F.conv2d(images, kernel, stride=kernel.shape[-1]), "b d h w -> b (h w) d")


class VisionStem(nn.Module):
    """Image -> tokens with their positions."""

    def __init__(self, width: int, image_size: int, patch: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = nn.ModuleDict({"proj": nn.ModuleDict({"1": PatchProjection(width, patch)})})
        positions = nn.Parameter(torch.empty(1, 1 + self.grid**2, width))  # CLS first, then patches in reading order
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": nn.init.trunc_normal_(positions, std=0.02)})

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + P * P, width), CLS first.

        Raises:
            ValueError: the images do not have the size that the positions were trained for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images are {tuple(images.shape)}; expected (B, 3, {self.image_size}, {self.image_size})")
        patches = self.rgbt_stem["proj"]["1"](images)  # type: ignore[index]
        cls = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embedding_helper["pos_embed"]


class TextStem(nn.Module):
    """Token ids -> tokens with their positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(49408, width)
        self.pos_embed = nn.Parameter(torch.empty(1, CONTEXT_LENGTH, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N <= 77) int64 -> (B, N, width)."""
        return self.token_embedding(ids) + self.pos_embed[:, : ids.shape[1]]


class TextHead(nn.Module):
    """The end-of-text token (the largest id of a sentence) -> unnormalised joint embedding."""

    def __init__(self, width: int, joint_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=LAYER_NORM_EPS), nn.Linear(width, joint_width, bias=False))

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """(B, N, width), (B, N) -> (B, joint_width)."""
        ends = ids.argmax(dim=1)
        return self.proj(tokens[torch.arange(len(tokens), device=tokens.device), ends])


class LogitScale(nn.Module):
    """Scales embeddings to the length of a learned, clipped temperature."""

    def __init__(self) -> None:
        super().__init__()
        # No parameter, for it is never trained, and DeepSpeed's broadcast fails at a parameter without dimensions.
        self.register_buffer("log_logit_scale", torch.tensor(math.log(1 / 0.07)))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return F.normalize(embedding, dim=-1) * self.log_logit_scale.exp().clamp(max=100)


class ImageBind(nn.Module):
    """Vision and text towers in one joint space. The other modalities of the released file are not built.

    Args:
        size: widths and depths.
        taps: vision blocks, see :func:`tapped_blocks`, which raises a ``UserError`` for wrong ones.
    """

    def __init__(self, size: ImageBindSize | None = None, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        size = size or ImageBindSize()
        self.spec = ImageSpec(
            size=size.image_size,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            grid=size.image_size // size.patch,
            tap_width=size.vision_width,
            taps=tapped_blocks(taps, size.vision_depth),
            embed_width=size.joint_width,
        )
        vision = Trunk(size.vision_width, size.vision_depth, size.vision_heads, causal=False, norm_first=True)
        text = Trunk(size.text_width, size.text_depth, size.text_heads, causal=True, norm_first=False)
        stem = VisionStem(size.vision_width, size.image_size, size.patch)
        # The four dictionaries give the released names, and the identities keep the layer numbers.
        self.modality_preprocessors = nn.ModuleDict({"vision": stem, "text": TextStem(size.text_width)})
        norm = nn.LayerNorm(size.vision_width, eps=LAYER_NORM_EPS)
        head = nn.Sequential(norm, nn.Identity(), nn.Linear(size.vision_width, size.joint_width, bias=False))
        self.modality_trunks = nn.ModuleDict({"vision": vision, "text": text})
        self.modality_heads = nn.ModuleDict({"vision": head, "text": TextHead(size.text_width, size.joint_width)})
        self.modality_postprocessors = nn.ModuleDict({"text": nn.Sequential(nn.Identity(), LogitScale())})

    @property
    def text_tower(self) -> nn.Module:
        """The modules that only sentences need."""
        groups = self.modality_preprocessors, self.modality_trunks, self.modality_heads, self.modality_postprocessors
        return nn.ModuleList(group["text"] for group in groups)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, 3, 224, 224), CLIP-normalised -> taps of (B, 256, 1280) and a unit embedding (B, 1024)."""
        tokens = self.modality_preprocessors["vision"](images)
        tokens, taps = self.modality_trunks["vision"](tokens, self.spec.taps)
        embedding = F.normalize(self.modality_heads["vision"](tokens[:, 0]), dim=-1)
        return ImageFeatures(taps=tuple(tap[:, 1:] for tap in taps), embedding=embedding)

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Sentences -> (B, 1024): unit embeddings times the learned, clipped temperature."""
        head = self.modality_heads["text"]
        ids = tokenize(sentences).to(head.proj[1].weight.device)  # type: ignore[union-attr, index]  # (B, 77) int64
        # Causal attention: nothing after the last end-of-text token can change a sentence's embedding.
        ids = ids[:, : int(ids.argmax(dim=1).max()) + 1]
        tokens, _ = self.modality_trunks["text"](self.modality_preprocessors["text"](ids))
        return self.modality_postprocessors["text"](head(tokens, ids))
