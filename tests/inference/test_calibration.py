"""The threshold that the reference photos alone give."""

import torch
import torch.nn.functional as F

from anomalygpt.inference.calibration import LOWEST, MARGIN, distance_threshold, taken_again
from anomalygpt.model.encoder import ImageFeatures


def photos(*angles: float) -> ImageFeatures:
    """Photos of one patch each, a unit vector at an angle."""
    turned = torch.tensor([[[torch.cos(torch.tensor(a)), torch.sin(torch.tensor(a))]] for a in angles])
    return ImageFeatures((turned,), turned[:, 0])


def test_each_reference_is_held_against_the_others() -> None:
    """At 0, 0.5 and 1.6 the last one is the strangest: 1.1 from its nearest."""
    references = photos(0.0, 0.5, 1.6)
    expected = MARGIN * (1 - torch.cos(torch.tensor(1.1)))
    assert abs(distance_threshold(references, references) - float(expected)) < 1e-6


def test_single_reference_is_held_against_itself_taken_again() -> None:
    expected = MARGIN * (1 - torch.cos(torch.tensor(0.7)))
    assert abs(distance_threshold(photos(0.2), photos(0.9)) - float(expected)) < 1e-6


def test_same_photo_twice_does_not_make_everything_anomalous() -> None:
    assert distance_threshold(photos(0.3, 0.3), photos(0.3, 0.3)) == LOWEST > 0


def test_photo_taken_again_is_shifted_half_a_patch_and_brighter() -> None:
    image = torch.randn(2, 3, 224, 224)
    again = taken_again(image)
    assert again.shape == image.shape
    assert torch.allclose(again[..., 7:, 7:] - image[..., :-7, :-7], torch.full((2, 3, 217, 217), 0.15), atol=1e-6)
    assert F.mse_loss(again, image) > 0
