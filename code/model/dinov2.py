"""DINOv2 ViT-S/14 (Oquab et al., TMLR 2024) as an encoder, through timm. It has no text tower."""

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.errors import UserError
from anomalygpt.model.encoder import ImageFeatures, ImageSpec, tapped_blocks

TIMM_NAME = "vit_small_patch14_dinov2.lvd142m"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PATCH, WIDTH, DEPTH = 14, 384, 12


def image_spec(image_size: int = 224, taps: Sequence[int] | None = None) -> ImageSpec:
    """What :class:`Dinov2` takes and gives, without building it.

    Raises:
        UserError: the size is no multiple of the patch, or ``taps`` are wrong.
    """
    if image_size % PATCH:
        raise UserError(f"encoder.image_size {image_size}: expected a multiple of the patch, {PATCH}")
    return ImageSpec(
        size=image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        grid=image_size // PATCH,
        tap_width=WIDTH,
        taps=tapped_blocks(taps, DEPTH),
        embed_width=WIDTH,
        any_size=True,
    )


class Dinov2(nn.Module):
    """Taps raw blocks; the embedding is the class token after the last norm.

    Args:
        image_size: side of the input in pixels, a multiple of 14.
        taps: see :func:`tapped_blocks`.
    """

    def __init__(self, image_size: int = 224, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        self.spec = image_spec(image_size, taps)
        self.vit: Any = timm.create_model(TIMM_NAME, pretrained=False, num_classes=0, dynamic_img_size=True)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, 3, S, S), ImageNet-normalised -> taps of (B, (S / 14)^2, 384) and a unit embedding (B, 384)."""
        last, taps = self.vit.forward_intermediates(images, indices=list(self.spec.taps), output_fmt="NLC", norm=False)
        # Only the class token of the last block is normed: the head sees it so, the taps stay raw.
        return ImageFeatures(taps=tuple(taps), embedding=F.normalize(last[:, 0], dim=-1))
