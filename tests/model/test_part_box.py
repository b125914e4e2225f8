"""How a part is oriented in its photo."""

import math

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.photo_geometry import orientation_of

GRID, WIDTH = 16, 32
ROWS, COLUMNS = torch.meshgrid(torch.arange(GRID) - 7.5, torch.arange(GRID) - 7.5, indexing="ij")


def photo(part: torch.Tensor) -> torch.Tensor:
    """Unit patches (N, WIDTH): one direction on the background, another on the part (GRID, GRID) bool."""
    directions = torch.eye(2, WIDTH)[part.flatten().long()]
    noise = torch.randn(GRID**2, WIDTH, generator=torch.Generator().manual_seed(0))
    return F.normalize(directions + 0.03 * noise, dim=-1)


@pytest.mark.parametrize(("angle", "tilt"), [(0, 0), (90, 0), (30, 30), (45, 45), (70, 20), (110, 20), (150, 30)])
def test_elongated_part_is_tilted_by_its_angle(angle: float, tilt: float) -> None:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    bar = ((COLUMNS * c + ROWS * s).abs() <= 6) & ((ROWS * c - COLUMNS * s).abs() <= 1.5)
    found = orientation_of(photo(bar))
    assert found.aspect > 2
    assert abs(found.tilt - tilt) < 3


def test_round_part_is_not_elongated() -> None:
    assert orientation_of(photo(ROWS**2 + COLUMNS**2 < 25)).aspect < 1.1


def test_photo_without_a_part_is_not_elongated() -> None:
    assert orientation_of(F.normalize(torch.ones(GRID**2, WIDTH), dim=-1)).aspect < 1.1
