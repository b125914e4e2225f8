"""ImageBind's vision tower: patches of an image in, patch tokens and one joint embedding out (specification 1)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

FRAMES = 2  # ImageBind sees a still image as a clip of two identical frames
CHANNELS = 3


class PatchProjection(nn.Module):
    """The clip's patch embedding, kept as the released 3-D kernel and applied as the 2-D one that it equals."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, CHANNELS, FRAMES, patch, patch))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P * P, width), P = S / patch."""
        # Both frames are the same image, so the sum over the kernel's time axis does the work of the repeated frame.
        kernel = self.weight.sum(dim=2)
        return rearrange(F.conv2d(images, kernel, stride=kernel.shape[-1]), "b d h w -> b (h w) d")


class PositionTable(nn.Module):
    """Learned positions: CLS first, then the patches in reading order."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)


class VisionStem(nn.Module):
    """Image -> tokens with their positions."""

    def __init__(self, width: int, image_size: int, patch: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.grid = image_size // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = nn.ModuleDict({"proj": nn.ModuleDict({"1": PatchProjection(width, patch)})})
        self.pos_embedding_helper = PositionTable(1 + self.grid**2, width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + P * P, width), CLS first.

        Raises:
            ValueError: the images do not have the side that the positions were learned for.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images are {tuple(images.shape)}; expected (B, 3, {self.image_size}, {self.image_size})")
        patches = self.rgbt_stem["proj"]["1"](images)  # type: ignore[index]
        cls = self.cls_token.expand(len(patches), -1, -1)
        return torch.cat([cls, patches], dim=1) + self.pos_embedding_helper.pos_embed
