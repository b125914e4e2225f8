"""Which further views help, chosen from the references."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.inference.augmentation import (
    TILTED,
    UPRIGHT,
    VIEWS,
    rotation_gain,
    tilted_aspect,
)
from anomalygpt.inference.references import References
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.photo_geometry import ELONGATED, FILLED, PartBox
from tests.shared_data import shared


def box(aspect: float, tilt: float, filled: float = 0.7) -> PartBox:
    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return PartBox(np.array([50.0, 50.0]), np.array([(c, s), (-s, c)]), np.array([10 * aspect, 10.0]), filled)


ROUND, UPRIGHT_BAR, TILTED_BAR = box(1.0, 40.0), box(2.5, 1.0), box(2.5, 30.0)


def test_views_are_quarter_turns() -> None:
    assert [turns for turns, _ in VIEWS["rotations"]] == [0, 1, 2, 3]
    assert all(views[0] == UPRIGHT for views in VIEWS.values())


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([TILTED_BAR] * 3, True),
        ([TILTED_BAR], True),
        ([ROUND] * 3, False),
        ([UPRIGHT_BAR] * 3, False),
        ([box(ELONGATED - 0.1, 40.0)] * 3, False),
        ([box(3.0, TILTED - 1)] * 3, False),
        ([box(3.0, 40.0, filled=FILLED - 0.1)] * 3, False),
        ([TILTED_BAR, UPRIGHT_BAR, UPRIGHT_BAR], False),  # one of several is an accident
        ([TILTED_BAR, TILTED_BAR, UPRIGHT_BAR], True),
    ],
)
def test_parts_are_tilted_where_most_are_long_and_lie_at_an_angle(parts: list[PartBox], expected: bool) -> None:
    assert tilted_aspect(parts) == (pytest.approx(2.5) if expected else 0)


def as_views(part: torch.Tensor) -> ImageFeatures:
    """Patches (8, 8, D) that look the same from any side, in all rotations of the photo."""
    turned = torch.stack(
        [torch.rot90(part.permute(2, 0, 1), turns, (-2, -1)) for turns, _ in VIEWS["rotations"]]
    )  # (4, D, 8, 8)
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
        ("screw", "straightened"),
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
        assert references.straightens == (expected == "straightened")
        assert references.straightens or references.augmentation == views
