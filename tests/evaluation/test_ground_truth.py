"""Maps and masks on the same pixels, by each rule."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.evaluation.evaluate import choose_mask_rule, ground_truth, on_map

SQUASH = ImageTransform(16, (0.0,) * 3, (1.0,) * 3, "squash")
CROP = ImageTransform(16, (0.0,) * 3, (1.0,) * 3, "crop")


def left_quarter(value: int = 255) -> Image.Image:
    """A mask twice as wide as high, whose marked quarter a centre crop cuts off."""
    mask = Image.new("L", (64, 32))
    mask.paste(value, (0, 0, 16, 32))
    return mask


@pytest.mark.parametrize(
    ("kind", "official", "rule"),
    [
        ("mvtec", True, "official_mvtec"),
        ("visa", True, "official_visa"),
        ("visa", False, "as_photo"),
        ("folder", True, "as_photo"),
        ("mvtec", False, "as_photo"),
    ],
)
def test_the_rule_follows_data_and_geometry(kind, official, rule):
    assert choose_mask_rule(kind, official) == rule


def test_a_mask_follows_its_photo_and_the_official_ones_do_as_the_paper():
    assert not on_map(left_quarter(), CROP, 32, "as_photo").any()
    squashed = on_map(left_quarter(), CROP, 32, "official_mvtec")
    assert squashed[:, :8].all() and not squashed[:, 9:].any()
    faint = Image.new("L", (64, 32))
    faint.paste(255, (32, 0, 64, 32))
    faint.paste(4, (0, 0, 32, 32))  # more than 1 % of the maximum, less than a tenth of white
    assert on_map(faint, CROP, 32, "official_visa").all()
    assert not on_map(faint, CROP, 32, "as_photo")[:, :15].any()


def test_the_official_masks_by_hand():
    # Two columns melt into one: a white and a black one give 0.5 everywhere, which both rules mark.
    stripes = Image.fromarray(np.tile(np.array([255, 0], np.uint8), (8, 4)))
    assert on_map(stripes, CROP, 4, "official_mvtec").all()
    faint = Image.new("L", (8, 8), 20)  # 20 / 255 = 0.08
    assert not on_map(faint, CROP, 4, "official_mvtec").any()
    assert on_map(faint, SQUASH, 4, "official_visa").all()
    assert not on_map(Image.new("L", (8, 8), 0), SQUASH, 4, "official_visa").any()
    wide = Image.new("L", (12, 4), 0)
    wide.paste(1, (0, 0, 4, 4))  # outside the centre crop
    assert not on_map(wide, SQUASH, 4, "official_visa").any()


def record(mask: Path) -> ImageRecord:
    photo = mask.with_name("photo.png")
    Image.new("L", (64, 32)).save(photo)
    return ImageRecord(photo, "part", "test", True, "cut", (mask,))


LOOK = SimpleNamespace(model_map=torch.zeros(1, 1, 16, 16))


def test_small_numbers_in_a_mask_mark_as_white_does(tmp_path):
    left_quarter(3).save(tmp_path / "mask.png")
    assert ground_truth(record(tmp_path / "mask.png"), LOOK, SQUASH, "as_photo").mask[:, :4].all()


def test_a_mask_is_also_given_as_the_model_was_shown_its_photo(tmp_path):
    left_quarter().save(tmp_path / "mask.png")
    photo = record(tmp_path / "mask.png")
    for rule in ("official_mvtec", "as_photo"):
        assert not ground_truth(photo, LOOK, CROP, rule).model_mask[:, 1:].any(), "it is cut off, but for its edge"
        seen = ground_truth(photo, LOOK, SQUASH, rule).model_mask
        assert seen.shape == (16, 16) and seen[:, :4].all() and not seen[:, 5:].any()
