"""The interface between an image encoder and the rest of the model."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from anomalygpt.errors import UserError


@dataclass(frozen=True)
class ImageSpec:
    """An encoder's input and output sizes, in pixels, patches and channels."""

    size: int  # side of the square input image
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: int  # patches along that side
    tap_width: int
    taps: tuple[int, ...]
    embed_width: int
    any_size: bool = False  # whether other sides, multiples of the patch size, are supported as well
    joint_taps: bool = False  # whether the taps are in the joint space of embedding and text, D wide


def tapped_blocks(taps: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """The tapped blocks, from 0; by default the last of each quarter. Raises :class:`UserError`: they are wrong."""
    chosen = tuple(taps) if taps is not None else tuple(depth // 4 * (i + 1) - 1 for i in range(4))
    if list(chosen) != sorted(set(chosen)) or not all(0 <= tap < depth for tap in chosen):
        raise UserError(f"encoder.taps {chosen}: expected rising block numbers below {depth}")
    return chosen


def through_blocks(blocks: Iterable[nn.Module], tokens: Tensor, taps: Collection[int]) -> tuple[Tensor, list[Tensor]]:
    """(B, N, width) -> the last block's output (B, N, width), and that of each tapped block, in block order."""
    tapped = []
    for index, block in enumerate(blocks):
        tokens = block(tokens)
        if index in taps:
            tapped.append(tokens)
    return tokens, tapped


def resized_positions(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Positions of a class token and a square of patches, (1, 1 + N, D), for so many rows and columns of patches."""
    grid = math.isqrt(positions.shape[1] - 1)
    if tuple(size) == (grid, grid):
        return positions
    patches = rearrange(positions[:, 1:], "b (h w) d -> b d h w", h=grid)
    resized = F.interpolate(patches.float(), tuple(size), mode="bicubic", antialias=True).to(positions.dtype)
    return torch.cat([positions[:, :1], rearrange(resized, "b d h w -> b (h w) d")], dim=1)


@dataclass(frozen=True)
class ImageFeatures:
    """An encoded batch of images."""

    taps: tuple[Tensor, ...]  # L of (B, P * P, D_v), P being ``grid``: the raw patch tokens in reading order
    embedding: Tensor  # (B, D), of unit length

    @property
    def grid(self) -> int:
        return round(self.taps[0].shape[1] ** 0.5)

    def __len__(self) -> int:
        return len(self.embedding)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "ImageFeatures":
        chosen = index if isinstance(index, slice | Tensor) else torch.as_tensor(list(index))
        return ImageFeatures(tuple(tap[chosen] for tap in self.taps), self.embedding[chosen])


class Encoder(Protocol):
    """An image encoder; one with a text tower in the same space has ``text_tower`` and ``encode_text``, too."""

    spec: ImageSpec

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Normalised images (B, 3, size, size), or of other sides with ``spec.any_size`` -> features."""
