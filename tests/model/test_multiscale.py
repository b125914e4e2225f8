"""Photos larger than the encoder's side."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.dinov2 import Dinov2
from anomalygpt.model.encoder import ImageFeatures, ImageSpec
from anomalygpt.model.multiscale import encode_multiscale, offsets

PATCH, GRID = 2, 4


def spec(any_size: bool = False) -> ImageSpec:
    zero = (0.0, 0.0, 0.0)
    return ImageSpec(PATCH * GRID, zero, zero, GRID, 3, (0,), 3, any_size)


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


def test_tiles_have_the_encoders_own_side() -> None:
    sides = []

    def encode(tiles: torch.Tensor) -> ImageFeatures:
        sides.append(tuple(tiles.shape[-2:]))
        return patch_means(tiles)

    encode_multiscale(encode, spec(), images(2 * PATCH * GRID))
    assert set(sides) == {(PATCH * GRID, PATCH * GRID)}


def test_encoder_that_takes_any_side_needs_no_tiles() -> None:
    calls = []

    def encode(seen: torch.Tensor) -> ImageFeatures:
        calls.append(len(seen))
        return patch_means(seen)

    photo = images(2 * PATCH * GRID, count=1)
    encode_multiscale(encode, spec(any_size=True), photo)
    assert calls == [1]
    encode_multiscale(encode, spec(), photo)
    assert sum(calls) == 1 + 9


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


def test_offsets_reach_from_border_to_border() -> None:
    assert offsets(32, 16) == [0, 8, 16]
    assert offsets(20, 16) == [0, 4]
    assert offsets(16, 16) == [0]


@pytest.mark.parametrize("side", [PATCH * GRID + 1, PATCH * GRID - PATCH])
def test_other_sides_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match="expected a multiple of 2 from 8 on"):
        encode_multiscale(patch_means, spec(), images(side))


def test_dinov2_sees_a_larger_photo_whole() -> None:
    torch.manual_seed(0)
    encoder = Dinov2(image_size=56).eval()
    assert encoder.spec.any_size
    with torch.no_grad():
        found = encode_multiscale(encoder.encode_image, encoder.spec, torch.rand(1, 3, 112, 112))
    assert [tap.shape for tap in found.taps] == [(1, 64, 384)] * 4
    assert found.grid == 8
