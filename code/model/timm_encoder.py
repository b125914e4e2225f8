"""Vision Transformers of timm as encoders. They read no text."""

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.errors import UserError, did_you_mean
from anomalygpt.model.encoder import ImageFeatures, ImageSpec, tapped_blocks


class TimmEncoder(nn.Module):
    """A Vision Transformer that timm lists by ``name``. The embedding is pooled as its classifier would.

    Raises:
        UserError: no such model, not one whose blocks all have one width, a wrong size, or wrong ``taps``.
    """

    def __init__(self, name: str, image_size: int = 224, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        try:
            vit: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
            depth, patch = len(vit.blocks), vit.patch_embed.patch_size[0]
        except (TypeError, AttributeError) as error:
            message = f"encoder.name {name!r}: expected a Vision Transformer that takes images of any size"
            raise UserError(f"{message}; timm.list_models('vit_*') has them") from error
        except RuntimeError as error:
            raise UserError(
                f"encoder.name {name!r}: no model of timm{did_you_mean(name, timm.list_models())}"
            ) from error
        self.vit = vit
        if image_size % patch:
            raise UserError(f"encoder.image_size {image_size}: expected a multiple of the patch, {patch}")
        self.spec = ImageSpec(
            size=image_size,
            mean=vit.pretrained_cfg["mean"],
            std=vit.pretrained_cfg["std"],
            grid=image_size // patch,
            tap_width=vit.embed_dim,
            taps=tapped_blocks(taps, depth),
            embed_width=vit.num_features,
            any_size=True,
        )

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, S, S) -> taps of (B, P * P, width) and a unit embedding (B, D)."""
        last, taps = self.vit.forward_intermediates(images, indices=list(self.spec.taps), output_fmt="NLC", norm=False)
        # Only the tokens of the last block are normalised; the taps stay raw.
        return ImageFeatures(tuple(taps), F.normalize(self.vit.forward_head(last, pre_logits=True), dim=-1))
