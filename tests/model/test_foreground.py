"""Which patches show the part, and how it lies."""

import math

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.foreground import find_background, lie_of

GRID, WIDTH = 16, 32


def photo(part: torch.Tensor, seed: int = 0, noise: float = 0.03) -> torch.Tensor:
    """Unit patches (N, WIDTH): one direction on the background, another on the part (GRID, GRID) bool."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.eye(2, WIDTH)[part.flatten().long()]
    return F.normalize(directions + noise * torch.randn(GRID**2, WIDTH, generator=generator), dim=-1)


def bar(angle: float, length: float = 6.0, width: float = 1.5) -> torch.Tensor:
    """A bar through the middle, its long axis at an angle in degrees from the horizontal: (GRID, GRID) bool."""
    rows, columns = torch.meshgrid(torch.arange(GRID) - 7.5, torch.arange(GRID) - 7.5, indexing="ij")
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return ((columns * c + rows * s).abs() <= length) & ((rows * c - columns * s).abs() <= width)


def test_background_is_what_the_border_shows() -> None:
    part = bar(0, length=4, width=3)
    background = find_background([photo(part, seed) for seed in range(3)])
    assert background is not None
    covered = background.covers(photo(part, seed=9)[None])[0].unflatten(0, (GRID, GRID))
    assert not covered[part].any()
    rim = F.max_pool2d(part[None, None].float(), 3, stride=1, padding=1)[0, 0].bool()
    assert torch.equal(covered, ~rim)


def test_strange_patch_on_the_background_is_not_background() -> None:
    part = bar(0, length=4, width=3)
    background = find_background([photo(part)])
    assert background is not None
    odd = photo(part, seed=1).clone()
    odd[1] = F.normalize(torch.ones(WIDTH), dim=0)
    assert not background.covers(odd[None])[0, 1]


def test_texture_has_no_background() -> None:
    generator = torch.Generator().manual_seed(0)
    texture = F.normalize(torch.randn(GRID**2, WIDTH, generator=generator) + 0.5, dim=-1)
    assert find_background([texture]) is None


def test_part_that_reaches_the_border_leaves_no_background() -> None:
    assert find_background([photo(bar(0, length=20, width=5))]) is None


@pytest.mark.parametrize(("angle", "askew"), [(0, 0), (90, 0), (30, 30), (45, 45), (70, 20), (110, 20), (150, 30)])
def test_long_part_lies_at_its_angle(angle: float, askew: float) -> None:
    lie = lie_of(photo(bar(angle)))
    assert lie.elongation > 2
    assert abs(lie.askew - askew) < 3


def test_round_part_is_not_long() -> None:
    rows, columns = torch.meshgrid(torch.arange(GRID) - 7.5, torch.arange(GRID) - 7.5, indexing="ij")
    assert lie_of(photo(rows**2 + columns**2 < 25)).elongation < 1.1
