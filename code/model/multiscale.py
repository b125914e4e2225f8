"""Photos larger than the encoder's own side: encoded whole where the encoder can, else in overlapping tiles."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures, ImageSpec

TILES_AT_ONCE = 16  # bounds the memory, not the result
STRIDE = 0.5  # of a tile's side


def encode_multiscale(encode: Callable[[Tensor], ImageFeatures], spec: ImageSpec, images: Tensor) -> ImageFeatures:
    """Features of square images of the encoder's own side or a larger one.

    Args:
        encode: normalised images -> features, as the model does it.
        images: (B, 3, S, S), normalised; S a multiple of the patch, at least the encoder's side.

    Returns:
        Taps (B, (S / patch)^2, D_v) in reading order.

    Raises:
        ValueError: S is no such side.
    """
    side = images.shape[-1]
    if side % spec.patch or side < spec.size:
        raise ValueError(f"images of side {side}: expected a multiple of {spec.patch} from {spec.size} on")
    if side == spec.size or spec.any_size:
        return encode(images)
    return _tiled(encode, spec, images)


def _tiled(encode: Callable[[Tensor], ImageFeatures], spec: ImageSpec, images: Tensor) -> ImageFeatures:
    """A patch that lies in several tiles is their mean, each weighted by how far inside the tile it lies."""
    batch, grid = len(images), images.shape[-1] // spec.patch
    corners = [(row, column) for row in offsets(grid, spec.grid) for column in offsets(grid, spec.grid)]
    tiles = [
        images[..., top : top + spec.size, left : left + spec.size]
        for top, left in ((row * spec.patch, column * spec.patch) for row, column in corners)
    ]
    encoded = [encode(part) for part in torch.cat(tiles).split(TILES_AT_ONCE)]
    taps = []
    for layer in zip(*(features.taps for features in encoded), strict=True):
        tokens = rearrange(torch.cat(layer).float(), "(t b) (h w) d -> t b h w d", b=batch, h=spec.grid)
        taps.append(_joined(tokens, corners, grid))
    embeddings = rearrange(torch.cat([features.embedding for features in encoded]), "(t b) d -> t b d", b=batch)
    return ImageFeatures(tuple(taps), F.normalize(embeddings.mean(dim=0), dim=-1))


def offsets(grid: int, tile: int) -> list[int]:
    """Where tiles of ``tile`` patches begin along a side of ``grid``: half a tile apart, the last one at the border."""
    step = max(1, round(tile * STRIDE))
    return [*range(0, grid - tile, step), grid - tile]


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
