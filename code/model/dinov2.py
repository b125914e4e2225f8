"""DINOv2 ViT-S/14 (Oquab et al., TMLR 2024) as an encoder. It has no text tower.

Written out with the tensor names of timm's ``vit_small_patch14_dinov2.lvd142m``: importing timm takes longer than
loading this model and encoding a photo.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anomalygpt.errors import UserError
from anomalygpt.model.encoder import ImageFeatures, ImageSpec, resized_positions, tapped_blocks
from anomalygpt.model.imagebind.imagebind import LAYER_NORM_EPS, Mlp, attend

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH, WIDTH, DEPTH, HEADS = 14, 384, 12, 6
TRAINED_GRID = 37  # patches a side of the photos that the positions were trained with


class _Block(nn.Module):
    """A pre-norm block with learned scales (LayerScale) of what attention and MLP add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = Mlp(WIDTH)
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(WIDTH)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn["proj"](attend(self.attn["qkv"](self.norm1(x)), HEADS))
        x = x + attended * self.ls1["gamma"]
        return x + self.mlp(self.norm2(x)) * self.ls2["gamma"]


class _VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, WIDTH))
        self.blocks = nn.ModuleList(_Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=LAYER_NORM_EPS)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1 + H / 14 * W / 14, 384): class token first, positions added."""
        patches = self.patch_embed["proj"](images)
        tokens = rearrange(patches, "b d h w -> b (h w) d")
        positions = self.positions(patches.shape[-2:])
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + positions

    def positions(self, size: Sequence[int]) -> Tensor:
        return resized_positions(self.pos_embed, size)


class Dinov2(nn.Module):
    """DINOv2 ViT-S/14. The taps are raw block outputs; the embedding is the class token after the last norm.

    Raises:
        UserError: ``image_size`` is no multiple of the patch, 14, or ``taps`` are wrong, see :func:`tapped_blocks`.
    """

    def __init__(self, image_size: int = 224, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        if image_size % PATCH:
            raise UserError(f"encoder.image_size {image_size}: expected a multiple of the patch, {PATCH}")
        self.spec = ImageSpec(
            size=image_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            grid=image_size // PATCH,
            tap_width=WIDTH,
            taps=tapped_blocks(taps, DEPTH),
            embed_width=WIDTH,
            any_size=True,
        )
        self.vit = _VisionTransformer()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, 3, S, S), ImageNet-normalised -> taps of (B, (S / 14)^2, 384) and a unit embedding (B, 384)."""
        tokens, taps = self.vit.embed(images), []
        for index, block in enumerate(self.vit.blocks):
            tokens = block(tokens)
            if index in self.spec.taps:
                taps.append(tokens[:, 1:])
        # Only the class token of the last block is normalised; the taps stay raw.
        return ImageFeatures(taps=tuple(taps), embedding=F.normalize(self.vit.norm(tokens[:, 0]), dim=-1))
