"""Photos larger than the encoder's side."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.dinov2 import Dinov2
from anomalygpt.model.encoder import ImageFeatures, ImageSpec
from anomalygpt.model.multiscale import encode_multiscale

PATCH, GRID = 2, 4


def spec(any_size: bool = False) -> ImageSpec:
    return ImageSpec(PATCH * GRID, (0.0,) * 3, (0.0,) * 3, GRID, 3, (0,), 3, any_size)


def patch_means(images: torch.Tensor) -> ImageFeatures:
    """An encoder without a field of view: each patch is its own mean colour."""
    means = F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
    return ImageFeatures((means,), F.normalize(images.mean(dim=(2, 3)), dim=-1))


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_own_side_is_encoded_as_it_is() -> None:
    photo = images(PATCH * GRID)
    assert torch.equal(encode_multiscale(patch_means, spec(), photo).taps[0], patch_means(photo).taps[0])


@pytest.mark.parametrize("times", [2, 3, 1.5])
def test_tiles_join_to_the_whole_where_a_patch_sees_only_itself(times: float) -> None:
    photo = images(round(times * PATCH * GRID))
    whole, tiled = patch_means(photo), encode_multiscale(patch_means, spec(), photo)
    assert torch.allclose(tiled.taps[0], whole.taps[0], atol=1e-6)
    assert torch.allclose(tiled.embedding.norm(dim=-1), torch.ones(2))


def test_encoder_that_takes_any_side_needs_no_tiles() -> None:
    calls: list[tuple[int, int]] = []

    def encode(batch: torch.Tensor) -> ImageFeatures:
        calls.append((len(batch), batch.shape[-1]))
        return patch_means(batch)

    photo = images(2 * PATCH * GRID, count=1)
    encode_multiscale(encode, spec(any_size=True), photo)
    encode_multiscale(encode, spec(), photo)
    assert calls == [(1, 2 * PATCH * GRID), (9, PATCH * GRID)]


def test_patch_is_nearest_to_the_tile_in_which_it_lies_deepest() -> None:
    """Tiles that all say their own number: the middle of a tile says it loudest."""
    numbers = iter(range(100))

    def encode(tiles: torch.Tensor) -> ImageFeatures:
        own = torch.stack([torch.full((GRID**2, 3), float(next(numbers))) for _ in tiles])
        return ImageFeatures((own,), torch.ones(len(tiles), 3))

    tap = encode_multiscale(encode, spec(), images(2 * PATCH * GRID, count=1)).taps[0][0, :, 0]
    grid = tap.unflatten(0, (2 * GRID, 2 * GRID))
    assert float(grid[0, 0]) == 0
    assert float(grid[-1, -1]) == 8
    assert torch.equal(grid + grid.flip(0, 1), torch.full_like(grid, 8))


def test_dinov2_sees_a_larger_photo_whole() -> None:
    torch.manual_seed(0)
    encoder = Dinov2(image_size=56).eval()
    assert encoder.spec.any_size
    with torch.no_grad():
        found = encode_multiscale(encoder.encode_image, encoder.spec, torch.rand(1, 3, 112, 112))
    assert [tap.shape for tap in found.taps] == [(1, 64, 384)] * 4
    assert found.grid == 8
