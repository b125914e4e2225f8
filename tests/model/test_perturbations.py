"""Perturbations of a single reference."""

import torch

from anomalygpt.model.perturbations import PERTURBATIONS, Perturbation, perturbed


def dot(row: int, column: int, side: int = 33) -> torch.Tensor:
    image = torch.zeros(3, side, side)
    image[:, row - 1 : row + 2, column - 1 : column + 2] = 1
    return image


def place(image: torch.Tensor) -> tuple[float, float]:
    """(row, column) of the centre of mass."""
    mass = image.mean(dim=0).clamp(min=0)
    along = torch.arange(len(mass), dtype=torch.float32)
    return float((mass.sum(dim=1) * along).sum() / mass.sum()), float((mass.sum(dim=0) * along).sum() / mass.sum())


def near(found: tuple[float, float], expected: tuple[float, float]) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 0.2


def test_no_change_gives_the_same_photo() -> None:
    image = torch.randn(3, 33, 33)
    assert torch.allclose(perturbed(image, (Perturbation(),))[0], image, atol=1e-5)


def test_shift_is_a_share_of_the_side_to_the_right_and_down() -> None:
    moved = perturbed(dot(16, 10), (Perturbation(shift=(4 / 33, -2 / 33)),))[0]
    assert near(place(moved), (14, 14))


def test_turn_is_anticlockwise_about_the_middle() -> None:
    moved = perturbed(dot(16, 26), (Perturbation(angle=90),))[0]
    assert near(place(moved), (6, 16))


def test_zoom_moves_things_away_from_the_middle() -> None:
    moved = perturbed(dot(16, 21), (Perturbation(zoom=2.0),))[0]
    assert near(place(moved), (16, 26))


def test_brightness_is_added() -> None:
    image = torch.randn(3, 8, 8)
    assert torch.allclose(perturbed(image, (Perturbation(brightness=0.5),))[0], image + 0.5, atol=1e-5)


def test_every_perturbation_is_near_the_photo_and_none_equals_it() -> None:
    image = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), size=(64, 64), mode="bicubic")[0]
    again = perturbed(image)
    assert again.shape == (len(PERTURBATIONS), 3, 64, 64)
    distances = (again - image).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0.01 < float(distances.min()) <= float(distances.max()) < float(image.std())


def test_no_perturbation_reaches_beyond_the_photo() -> None:
    """The corners of each perturbed photo lie on the photo."""
    for each in PERTURBATIONS:
        corners = torch.tensor([[x, y, 1.0] for x in (-1.0, 1.0) for y in (-1.0, 1.0)])
        seen = corners @ torch.tensor(each.matrix()).T
        assert float(seen.abs().max()) <= 1, each
