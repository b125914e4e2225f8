"""Simulated anomalies, on generated pictures, on awkward ones and on real photos."""

import numpy as np
import pytest

from anomalygpt.datasets.dialogue import Wording
from anomalygpt.datasets.drawn import draw_defects
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.regions import position_name
from anomalygpt.datasets.synthesis import NSALabel, NSASettings, change_label, nsa_settings, simulate
from anomalygpt.datasets.tree import index_tree
from anomalygpt.inference.answers import parse_verdict

SETTINGS = NSASettings()


def random_photo(seed, height=64, width=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width])


def assert_agrees(photo, simulated):
    """Photo, mask, boxes and sentence of one simulation tell the same story."""
    target = simulated.mask > 0.3
    assert simulated.image.dtype == np.uint8 and simulated.mask.dtype == np.float32
    assert simulated.image.shape == photo.shape and simulated.mask.shape == photo.shape[:2]
    assert simulated.mask.min() >= 0 and simulated.mask.max() <= 1
    assert target.any() == bool(simulated.boxes)
    covered = np.zeros_like(target)
    for box in simulated.boxes:
        inside = target[box.top : box.bottom, box.left : box.right]
        assert inside.any(axis=1)[[0, -1]].all() and inside.any(axis=0)[[0, -1]].all(), "the box fits its trace"
        covered[box.top : box.bottom, box.left : box.right] = True
    assert not (target & ~covered).any(), "every marked pixel is in a named box"
    if not simulated.boxes:
        assert np.array_equal(simulated.image, photo)
    positions = [position_name(box, target.shape[::-1]) for box in simulated.boxes]
    answer = Wording().answer("verdict", positions)
    assert parse_verdict(answer) == target.any()
    assert all(f"the {position}" in answer for position in positions)


def draw(photo, source, settings, rng):
    return draw_defects(photo, settings, rng)


@pytest.mark.parametrize("make", [simulate, draw])
def test_photo_mask_positions_and_sentence_agree_over_a_thousand_draws(make):
    photos = [random_photo(seed) for seed in range(8)]
    rng = np.random.default_rng(0)
    patches = []
    for number in range(1000):
        photo, source = photos[number % 8], photos[(number + 3) % 8]
        simulated = make(photo, source, SETTINGS, rng)
        assert_agrees(photo, simulated)
        patches.append(len(simulated.boxes))
    assert set(patches) >= {1, 2}


@pytest.mark.parametrize("make", [simulate, draw])
@pytest.mark.parametrize("side", [1, 2, 5, 8, 9, 11, 12, 16, 32])
@pytest.mark.parametrize("class_name", ["bottle", "candle", "screw", "carpet"])
def test_tiny_photos_never_fail(make, side, class_name):
    rng = np.random.default_rng(side)
    for number in range(20):
        photo = rng.integers(0, 256, (side, side + number % 3, 3), dtype=np.uint8)
        photo.setflags(write=False)
        source = np.flip(photo, 0)[:, : max(1, side - number)]
        assert_agrees(photo, make(photo, source, nsa_settings(class_name), rng))


@pytest.mark.parametrize("value", [0, 20, 200, 255])
@pytest.mark.parametrize("class_name", ["bottle", "hazelnut", "candle"])
def test_a_constant_photo_stays_normal(value, class_name):
    photo = np.full((48, 48, 3), value, np.uint8)
    simulated = simulate(photo, photo, nsa_settings(class_name), np.random.default_rng(0))
    assert not simulated.boxes and not simulated.mask.any()


def test_the_label_is_the_logistic_of_the_difference():
    before = np.zeros((40, 40, 3), np.uint8)
    after = before.copy()
    after[10:30, 10:30] = 24
    label = change_label(before, after, SETTINGS)
    assert label[20, 20] == pytest.approx(0.5)
    assert label[2, 2] == 0
    after[10:30, 10:30] = (36, 36, 36)
    assert change_label(before, after, SETTINGS)[20, 20] == pytest.approx(1 / (1 + np.exp(-1)))
    after[:] = 0
    after[20, 20] = 255
    assert not change_label(before, after, SETTINGS).any(), "a single pixel is filtered out"


def test_the_class_table_is_the_papers():
    assert nsa_settings("cable").half_width == (0.05, 0.4)
    assert nsa_settings("capsule").half_height == (0.03, 0.15)
    assert nsa_settings("metal nut") == nsa_settings("metal_nut")
    assert nsa_settings("metal_nut").background == (20, 20)
    assert nsa_settings("screw").label == NSALabel(softness=1, midpoint=3)
    assert nsa_settings("grid_tiles") == nsa_settings("grid")
    assert nsa_settings("pcb1") == nsa_settings("my own part") == NSASettings()


@pytest.mark.data
@pytest.mark.parametrize("make", [simulate, draw])
@pytest.mark.parametrize("class_name", ["bottle", "screw", "hazelnut", "grid_tiles", "carpet_tiles", "toothbrush"])
def test_real_photos_get_defects_that_agree(real_photos, make, class_name):
    records = [r for r in index_tree(real_photos, [class_name]) if r.split == "train"][:6]
    photos = [np.asarray(load_image(r.image).resize((128, 128))) for r in records]
    rng = np.random.default_rng(0)
    made = 0
    for number in range(24):
        photo = photos[number % 6]
        simulated = make(photo, photos[(number + 1) % 6], nsa_settings(class_name), rng)
        assert_agrees(photo, simulated)
        made += bool(simulated.boxes)
    assert made >= 20
