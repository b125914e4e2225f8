"""ImageBind (Girdhar et al., CVPR 2023), its vision and text towers, under the released file's tensor names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.model.encoder import ImageFeatures, ImageSpec, tapped_blocks
from anomalygpt.model.imagebind.text import LogitScale, TextHead, TextStem
from anomalygpt.model.imagebind.tokenizer import tokenize
from anomalygpt.model.imagebind.transformer import LAYER_NORM_EPS, Trunk
from anomalygpt.model.imagebind.vision import VisionStem

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


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


def image_spec(size: ImageBindSize, taps: Sequence[int] | None = None) -> ImageSpec:
    """What :class:`ImageBind` takes and gives, without building it.

    Raises:
        UserError: ``taps`` are wrong.
    """
    return ImageSpec(
        size=size.image_size,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        grid=size.image_size // size.patch,
        tap_width=size.vision_width,
        taps=tapped_blocks(taps, size.vision_depth),
        embed_width=size.joint_width,
    )


class ImageBind(nn.Module):
    """Vision and text towers in one joint space. The other modalities of the released file are not built.

    Args:
        size: widths and depths.
        taps: vision blocks, see :func:`tapped_blocks`.
    """

    def __init__(self, size: ImageBindSize | None = None, taps: Sequence[int] | None = None) -> None:
        super().__init__()
        size = size or ImageBindSize()
        self.spec = image_spec(size, taps)
        vision = Trunk(size.vision_width, size.vision_depth, size.vision_heads, causal=False, norm_first=True)
        text = Trunk(size.text_width, size.text_depth, size.text_heads, causal=True, norm_first=False)
        stem = VisionStem(size.vision_width, size.image_size, size.patch)
        # The four dictionaries carry the released names, and the identities keep their numbers.
        self.modality_preprocessors = nn.ModuleDict({"vision": stem, "text": TextStem(size.text_width)})
        norm = nn.LayerNorm(size.vision_width, eps=LAYER_NORM_EPS)
        head = nn.Sequential(norm, nn.Identity(), nn.Linear(size.vision_width, size.joint_width, bias=False))
        self.modality_trunks = nn.ModuleDict({"vision": vision, "text": text})
        self.modality_heads = nn.ModuleDict({"vision": head, "text": TextHead(size.text_width, size.joint_width)})
        self.modality_postprocessors = nn.ModuleDict({"text": nn.Sequential(nn.Identity(), LogitScale())})

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
