"""Perturbations of a single reference."""

import pytest
import torch

from anomalygpt.model.photo_geometry import PERTURBATIONS, perturbed


def dot(row: int, column: int, side: int = 33) -> torch.Tensor:
    image = torch.zeros(3, side, side)
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 1
    return image


def place(image: torch.Tensor) -> tuple[float, float]:
    """(row, column) of the centre of mass."""
    mass = image.mean(dim=0).clamp(min=0)
    along = torch.arange(len(mass), dtype=torch.float32)
    return float((mass.sum(dim=1) * along).sum() / mass.sum()), float((mass.sum(dim=0) * along).sum() / mass.sum())


@pytest.mark.parametrize(
    ("start", "change", "end"),
    [
        ((16, 10), (4 / 33, -2 / 33, 0, 1, 0), (14, 14)),  # fractions of the side, right and down
        ((16, 26), (0, 0, 90, 1, 0), (6, 16)),  # anticlockwise about the centre
        ((16, 21), (0, 0, 0, 2.0, 0), (16, 26)),  # away from the centre
    ],
    ids=["shift", "angle", "zoom"],
)
def test_perturbation_moves_a_dot(start: tuple[int, int], change: tuple[float, ...], end: tuple[float, float]) -> None:
    assert place(perturbed(dot(*start), (change,))[0]) == pytest.approx(end, abs=0.2)


@pytest.mark.parametrize("brightness", [0.0, 0.5])
def test_brightness_is_added_and_nothing_else_changes(brightness: float) -> None:
    image = torch.randn(3, 8, 8)
    changed = perturbed(image, ((0, 0, 0, 1, brightness),))[0]
    assert torch.allclose(changed, image + brightness, atol=1e-5)


def test_every_perturbation_is_near_the_photo_and_none_equals_it() -> None:
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), size=(64, 64), mode="bicubic")[0]
    again = perturbed(image)
    assert again.shape == (len(PERTURBATIONS), 3, 64, 64)
    distances = (again - image).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0.01 < float(distances.min()) <= float(distances.max()) < float(image.std())


def test_no_perturbation_reaches_beyond_the_photo() -> None:
    """What lies there would be black."""
    for each, changed in zip(PERTURBATIONS, perturbed(torch.ones(3, 64, 64)), strict=True):
        assert torch.allclose(changed, torch.tensor(1.0 + each[4]), atol=1e-5), each
