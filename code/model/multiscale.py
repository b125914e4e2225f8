"""Photos larger than the encoder's input: encoded in one pass where the encoder can, else in overlapping tiles."""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures, ImageSpec

TILES_AT_ONCE = 16  # bounds the memory, not the result


def encode_multiscale(encode: Callable[[Tensor], ImageFeatures], spec: ImageSpec, images: Tensor) -> ImageFeatures:
    """Features of square images of the encoder's input size or larger.

    A patch that lies in several tiles is their mean, each weighted by how far inside the tile it lies.

    Args:
        encode: normalised images -> features, such as ``AnomalyGPT.encode``.
        images: (B, 3, S, S), normalised; S a multiple of the patch size, at least the encoder's input size.
    """
    side = images.shape[-1]
    if side == spec.size or spec.any_size:
        return encode(images)
    batch, grid = len(images), side // spec.patch
    # Tiles lie half a tile apart, the last one at the border.
    offsets = [*range(0, grid - spec.grid, max(1, round(spec.grid / 2))), grid - spec.grid]
    corners = list(product(offsets, offsets))
    tiles = [
        images[..., row * spec.patch :, column * spec.patch :][..., : spec.size, : spec.size] for row, column in corners
    ]
    encoded = [encode(part) for part in torch.cat(tiles).split(TILES_AT_ONCE)]
    taps = []
    for layer in zip(*(features.taps for features in encoded), strict=True):
        tokens = rearrange(torch.cat(layer).float(), "(t b) (h w) d -> t b h w d", b=batch, h=spec.grid)
        taps.append(_joined(tokens, corners, grid))
    embeddings = rearrange(torch.cat([features.embedding for features in encoded]), "(t b) d -> t b d", b=batch)
    return ImageFeatures(tuple(taps), F.normalize(embeddings.mean(dim=0), dim=-1))


def _joined(tokens: Tensor, corners: list[tuple[int, int]], grid: int) -> Tensor:
    """Tiles (T, B, P, P, D_v) at their corners -> (B, grid * grid, D_v)."""
    side = tokens.shape[2]
    along = torch.arange(1, side + 1, device=tokens.device).float()
    rising = torch.minimum(along, along.flip(0))
    window = (rising[:, None] * rising)[..., None]  # (P, P, 1): 1 at the tile's border, rising to its middle
    total = tokens.new_zeros(tokens.shape[1], grid, grid, tokens.shape[-1])
    weight = tokens.new_zeros(grid, grid, 1)
    for (row, column), tile in zip(corners, tokens, strict=True):
        rows, columns = slice(row, row + side), slice(column, column + side)
        total[:, rows, columns] += tile * window
        weight[rows, columns] += window
    return rearrange(total / weight, "b h w d -> b (h w) d")
