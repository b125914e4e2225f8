"""Which further views help, chosen from the references."""

import pytest
import torch
from PIL import Image

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.inference.augmentation import (
    CLEAR_GAIN,
    ELONGATED,
    TILTED,
    UPRIGHT,
    VIEWS,
    choose_augmentation,
    rotation_gain,
    seen,
)
from anomalygpt.inference.references import References
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.photo_geometry import Orientation
from tests.shared_data import shared

ROUND, UPRIGHT_BAR, TILTED_BAR = Orientation(1.0, 40.0), Orientation(2.5, 1.0), Orientation(2.5, 30.0)


def test_views_are_quarter_turns() -> None:
    image = torch.arange(9.0).view(1, 3, 3)
    assert torch.equal(seen(image, UPRIGHT), image)
    assert [turns for turns, _ in VIEWS["rotations"]] == [0, 1, 2, 3]
    assert torch.equal(seen(image, (1, "own")), torch.rot90(image, 1, (-2, -1)))
    assert all(views[0] == UPRIGHT for views in VIEWS.values())


@pytest.mark.parametrize(
    ("gain", "parts", "expected"),
    [
        (CLEAR_GAIN - 0.01, [ROUND] * 4, "rotations"),
        (CLEAR_GAIN + 0.01, [ROUND] * 4, "none"),  # what any four views bring
        (0.7, [UPRIGHT_BAR] * 4, "rotations"),
        (0.97, [TILTED_BAR] * 3, "rotations"),
        (0.97, [ROUND] * 3, "none"),
        (0.97, [UPRIGHT_BAR] * 3, "none"),
        (0.97, [Orientation(ELONGATED - 0.1, 40.0)] * 3, "none"),
        (0.97, [Orientation(3.0, TILTED - 1)] * 3, "none"),
        (0.97, [TILTED_BAR, UPRIGHT_BAR, UPRIGHT_BAR], "none"),  # one of several is an accident
        (0.97, [TILTED_BAR, TILTED_BAR, UPRIGHT_BAR], "rotations"),
    ],
)
def test_views_are_chosen_by_a_clear_gain_or_by_most_parts_tilt(
    gain: float, parts: list[Orientation], expected: str
) -> None:
    assert choose_augmentation(gain, parts) == expected


def as_views(part: torch.Tensor) -> ImageFeatures:
    """Patches (8, 8, D) that look the same from any side, in all rotations of the photo."""
    turned = torch.stack([seen(part.permute(2, 0, 1), view) for view in VIEWS["rotations"]])  # (4, D, 8, 8)
    tap = turned.flatten(2).transpose(1, 2)
    return ImageFeatures((tap,), torch.zeros(4, 4))


def test_views_that_hold_the_same_patches_bring_nothing() -> None:
    """Turned patches lie elsewhere, but patches are compared wherever they lie."""
    parts = torch.randn(3, 8, 8, 4, generator=torch.Generator().manual_seed(0))
    assert rotation_gain([as_views(part) for part in parts]) == pytest.approx(1.0)


def test_parts_that_differ_by_a_turn_gain_by_rotations() -> None:
    """Each patch depends on the rotation: the second photo is the first, rotated by 90 degrees."""
    patches, others = torch.randn(2, 4, 64, 32, generator=torch.Generator().manual_seed(0))
    first, turned = (ImageFeatures((patches.roll(shift, 0),), torch.zeros(4, 4)) for shift in (0, -1))
    assert rotation_gain([first, turned]) < 0.01
    assert rotation_gain([first, ImageFeatures((others,), torch.zeros(4, 4))]) > 0.7


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
