"""DINOv2 ViT-S/14 (Oquab et al., TMLR 2024), written out with timm's tensor names: importing timm takes seconds."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.errors import UserError
from anomalygpt.model.encoder import ImageFeatures, ImageSpec, resized_positions, tapped_blocks, through_blocks
from anomalygpt.model.imagebind.imagebind import LAYER_NORM_EPS, attend, mlp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH, WIDTH, DEPTH, HEADS = 14, 384, 12, 6
TRAINED_GRID = 37  # patches a side of the photos that the positions were trained with


class _Linear(nn.Linear):
    """A linear layer that oneDNN computes once it is packed, faster than ``F.linear``: on a CPU, without gradient."""

    packed: Tensor | None = None  # weights in oneDNN's own layout

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": None}  # which can't be copied

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is None or torch.compiler.is_compiling():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class _Block(nn.Module):
    """A pre-norm block with learned scales (LayerScale) of what attention and MLP add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": _Linear(WIDTH, 3 * WIDTH), "proj": _Linear(WIDTH, WIDTH)})
        self.mlp = mlp(WIDTH, _Linear)
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(WIDTH)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        attended = attend(self.attn["qkv"](self.norm1(x)), HEADS)
        x = x + self.attn["proj"](attended) * self.ls1["gamma"]
        return x + self.mlp(self.norm2(x)) * self.ls2["gamma"]


class Dinov2(nn.Module):
    """DINOv2 ViT-S/14. The taps are raw block outputs; the embedding is the class token after the last norm."""

    def __init__(self, image_size: int = 224, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        if image_size % PATCH:
            raise UserError(f"encoder.image_size {image_size}: expected a multiple of the patch, {PATCH}")
        grid, blocks = image_size // PATCH, tapped_blocks(taps, DEPTH)
        self.spec = ImageSpec(image_size, IMAGENET_MEAN, IMAGENET_STD, grid, WIDTH, blocks, WIDTH, any_size=True)
        self.vit: Any = nn.Module()
        self.vit.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.vit.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.vit.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, WIDTH))
        self.vit.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))
        self.vit.norm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)

    def pack(self) -> None:
        """For speed where nothing is trained, on a CPU in float32; the weights stay as they are beside the packed."""
        with suppress(RuntimeError, AttributeError):  # builds without oneDNN, or with other names of its operators
            for module in self.modules():
                if isinstance(module, _Linear):
                    module.packed = torch.ops.mkldnn._reorder_linear_weight(module.weight, 257)  # tokens of 224 px

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, 3, S, S), ImageNet-normalised -> taps of (B, (S / 14)^2, 384) and a unit embedding (B, 384)."""
        patches = self.vit.patch_embed["proj"](images)
        positions = resized_positions(self.vit.pos_embed, patches.shape[-2:])
        tokens = torch.cat([self.vit.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1) + positions
        tokens, taps = through_blocks(self.vit.blocks, tokens, self.spec.taps)
        # Only the class token of the last block is normalised; the taps stay raw.
        embedding = F.normalize(self.vit.norm(tokens[:, 0]), dim=-1)
        return ImageFeatures(tuple(tap[:, 1:] for tap in taps), embedding)
