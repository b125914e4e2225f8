"""Which further views help, chosen from the references."""

import pytest
import torch
from PIL import Image

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.inference.augmentation import (
    ALL_VIEWS,
    CLEAR_GAIN,
    ELONGATED,
    TILTED,
    UPRIGHT,
    VIEWS,
    choose_augmentation,
    seen,
    view_gains,
    view_positions,
)
from anomalygpt.inference.references import References
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.photo_geometry import Orientation
from tests.shared_data import shared

ROUND, UPRIGHT_BAR, TILTED_BAR = Orientation(1.0, 40.0), Orientation(2.5, 1.0), Orientation(2.5, 30.0)


def test_views_rotate_and_mirror() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    assert torch.equal(seen(image, UPRIGHT), image)
    assert torch.equal(seen(image, (1, False, "own")), torch.rot90(image, 1, (-2, -1)))
    flips = [seen(image, view) for view in VIEWS["flips"]]
    expected = [image, image.flip(-1), image.flip(-2), image.flip(-2).flip(-1)]
    assert all(torch.equal(a, b) for a, b in zip(flips, expected, strict=True))
    assert len(ALL_VIEWS) == 6
    assert all(views[0] == UPRIGHT for views in VIEWS.values())


def test_view_positions_map_patches_to_the_upright_photo() -> None:
    image = torch.randn(4, 4)
    for view, position in zip(ALL_VIEWS, view_positions(ALL_VIEWS, 4), strict=True):
        assert torch.equal(seen(image, view).flatten(), image.flatten()[position])


@pytest.mark.parametrize(
    ("rotations", "flips", "parts", "expected"),
    [
        (CLEAR_GAIN - 0.01, 0.95, [ROUND] * 4, "rotations"),
        (CLEAR_GAIN + 0.01, CLEAR_GAIN + 0.01, [ROUND] * 4, "none"),  # what any four views bring
        (0.8, 0.7, [UPRIGHT_BAR] * 4, "flips"),
        (0.97, 0.96, [TILTED_BAR] * 3, "rotations"),
        (0.97, 0.96, [ROUND] * 3, "none"),
        (0.97, 0.96, [UPRIGHT_BAR] * 3, "none"),
        (0.97, 0.96, [Orientation(ELONGATED - 0.1, 40.0)] * 3, "none"),
        (0.97, 0.96, [Orientation(3.0, TILTED - 1)] * 3, "none"),
        (0.97, 0.96, [TILTED_BAR, UPRIGHT_BAR, UPRIGHT_BAR], "none"),  # one of several is an accident
        (0.97, 0.96, [TILTED_BAR, TILTED_BAR, UPRIGHT_BAR], "rotations"),
    ],
)
def test_views_are_chosen_by_a_clear_gain_or_by_most_parts_tilt(
    rotations: float, flips: float, parts: list[Orientation], expected: str
) -> None:
    assert choose_augmentation({"rotations": rotations, "flips": flips}, parts) == expected


def as_views(part: torch.Tensor) -> ImageFeatures:
    """Patches (8, 8, D) that look the same from any side, in all views of the photo."""
    turned = torch.stack([seen(part.permute(2, 0, 1), view) for view in ALL_VIEWS])  # (6, D, 8, 8)
    tap = turned.flatten(2).transpose(1, 2)
    return ImageFeatures((tap,), torch.zeros(len(ALL_VIEWS), 4))


def test_views_that_hold_the_same_patches_bring_nothing() -> None:
    """Turned patches lie elsewhere, but patches are compared wherever they lie."""
    gains = view_gains([as_views(torch.randn(8, 8, 4)) for _ in range(3)])
    assert gains == pytest.approx({"rotations": 1.0, "flips": 1.0})


def test_parts_that_differ_by_a_turn_gain_by_rotations_alone() -> None:
    """Each patch depends on the rotation: the second photo is the first, rotated by 90 degrees."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(len(ALL_VIEWS), 64, 32, generator=generator)
    first = ImageFeatures((patches,), torch.zeros(len(ALL_VIEWS), 4))
    quarter, half, three = (ALL_VIEWS.index((turns, False, "own")) for turns in (1, 2, 3))
    turned = patches.clone()
    turned[[0, quarter, half, three]] = patches[[quarter, half, three, 0]]
    gains = view_gains([first, ImageFeatures((turned,), torch.zeros(len(ALL_VIEWS), 4))])
    assert gains["rotations"] < 0.01
    assert gains["flips"] > 0.7


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("screw", "rotations"),
        ("hazelnut", "rotations"),
        ("transistor", "none"),
        ("toothbrush", "none"),
        ("leather_tiles", "none"),
    ],
)
def test_auto_chooses_the_views_of_real_parts(compact_predictor, part: str, expected: str) -> None:
    good = shared(f"data/mvtec_layout/{part}/train/good")
    photos = [Image.open(path) for path in sorted(good.iterdir())[:2]]
    settings = ReferenceSettings(preset="custom", augmentation="auto")
    for count, views in ((1, "rotations"), (2, expected)):
        references = References(compact_predictor.model, settings, compact_predictor.transform, photos[:count])
        assert references.augmentation == views
