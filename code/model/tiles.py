"""Photos larger than the encoder's own side: seen whole where the encoder can, else in tiles that overlap."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures, ImageSpec

TILES_AT_ONCE = 16  # bounds the memory, not the result
STRIDE = 0.5  # of a tile's side


def encode_square(
    encode: Callable[[Tensor], ImageFeatures], spec: ImageSpec, images: Tensor, tiling: bool = False
) -> ImageFeatures:
    """Features of square images of the encoder's own side or a larger one.

    Args:
        encode: normalised images -> features, as the model does it.
        images: (B, 3, S, S), normalised; S a multiple of the patch, at least the encoder's side.
        tiling: cuts larger images into tiles even where the encoder would take them whole.

    Returns:
        Taps (B, (S / patch)^2, D_v) in reading order.

    Raises:
        ValueError: S is no such side.
    """
    side = images.shape[-1]
    if side % spec.patch or side < spec.size:
        raise ValueError(f"images of side {side}: expected a multiple of {spec.patch} from {spec.size} on")
    if side == spec.size or (spec.any_size and not tiling):
        return encode(images)
    return _tiled(encode, spec, images)


def _tiled(encode: Callable[[Tensor], ImageFeatures], spec: ImageSpec, images: Tensor) -> ImageFeatures:
    """A patch that lies in several tiles is their mean, each weighed by how far inside the tile it lies."""
    batch, grid = len(images), images.shape[-1] // spec.patch
    corners = [(row, column) for row in offsets(grid, spec.grid) for column in offsets(grid, spec.grid)]
    tiles = [_cut(images, spec, row, column) for row, column in corners]
    encoded = [encode(part) for part in torch.cat(tiles).split(TILES_AT_ONCE)]
    window = _window(spec.grid, images.device)
    taps = []
    for layer in zip(*(features.taps for features in encoded), strict=True):
        tokens = torch.cat(layer).float().unflatten(0, (len(corners), batch))  # (T, B, P * P, D_v)
        taps.append(_joined(tokens, corners, grid, window.to(tokens.device)))
    embeddings = torch.cat([features.embedding for features in encoded]).unflatten(0, (len(corners), batch))
    return ImageFeatures(tuple(taps), F.normalize(embeddings.mean(dim=0), dim=-1))


def offsets(grid: int, tile: int) -> list[int]:
    """Where tiles of ``tile`` patches begin along a side of ``grid``: half a tile apart, the last one at the border."""
    step = max(1, round(tile * STRIDE))
    return [*range(0, grid - tile, step), grid - tile]


def _cut(images: Tensor, spec: ImageSpec, row: int, column: int) -> Tensor:
    top, left = row * spec.patch, column * spec.patch
    return images[..., top : top + spec.size, left : left + spec.size]


def _window(grid: int, device: torch.device) -> Tensor:
    """(P, P) float32: 1 at the tile's border, rising to its middle."""
    along = torch.arange(1, grid + 1, device=device).float()
    rising = torch.minimum(along, along.flip(0))
    return rising[:, None] * rising


def _joined(tokens: Tensor, corners: list[tuple[int, int]], grid: int, window: Tensor) -> Tensor:
    """Tiles (T, B, P * P, D_v) -> (B, grid * grid, D_v)."""
    side = len(window)
    total = tokens.new_zeros(tokens.shape[1], grid, grid, tokens.shape[-1])
    weight = tokens.new_zeros(grid, grid, 1)
    for (row, column), tile in zip(corners, tokens.unflatten(2, (side, side)), strict=True):
        rows, columns = slice(row, row + side), slice(column, column + side)
        total[:, rows, columns] += tile * window[..., None]
        weight[rows, columns] += window[..., None]
    return (total / weight).flatten(1, 2)
