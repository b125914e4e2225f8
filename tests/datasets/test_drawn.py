"""Drawn anomalies: they agree with their masks, are of every kind, and stay where they belong."""

import numpy as np
import pytest

from anomalygpt.datasets.dialogue import defect_sentence
from anomalygpt.datasets.drawn import KINDS, VISIBLE, draw_defects
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.synthesis import NSASettings, nsa_settings, object_mask
from anomalygpt.datasets.transforms import load_image
from tests.datasets.test_synthesis import assert_agrees, random_photo

SETTINGS = NSASettings()


def test_photo_mask_positions_and_sentence_agree_over_a_thousand_draws():
    photos = [random_photo(seed) for seed in range(8)]
    rng = np.random.default_rng(0)
    kinds, counts = set(), set()
    for number in range(1000):
        drawn = draw_defects(photos[number % 8], SETTINGS, rng)
        assert_agrees(photos[number % 8], drawn)
        kinds.add(drawn.kind)
        counts.add(len(drawn.boxes))
    assert kinds >= set(KINDS), "every kind comes up"
    assert counts >= {1, 2}


def test_what_is_marked_has_changed_and_little_else():
    photo = random_photo(3, 128, 128)
    for seed in range(50):
        drawn = draw_defects(photo, SETTINGS, np.random.default_rng(seed))
        change = np.abs(drawn.image.astype(float) - photo).mean(axis=2)
        marked = drawn.mask > 0.3
        assert change[marked].mean() > VISIBLE
        rows, columns = np.nonzero(change)
        near = np.zeros_like(marked)
        for row, column in zip(*np.nonzero(marked), strict=True):
            near[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
        assert near[rows, columns].all(), "no pixel changes more than two pixels away from the mark"


def test_the_same_generator_gives_the_same_defect():
    first, second = (draw_defects(random_photo(0), SETTINGS, np.random.default_rng(5)) for _ in "ab")
    assert np.array_equal(first.image, second.image) and first.boxes == second.boxes and first.kind == second.kind


@pytest.mark.parametrize("side", [1, 5, 9, 16])
def test_tiny_photos_never_fail(side):
    for seed in range(20):
        assert_agrees(random_photo(0, side, side), draw_defects(random_photo(0, side, side), SETTINGS, _rng(seed)))


def test_defects_touch_the_object_where_the_background_is_known():
    photo = np.full((96, 96, 3), 200, np.uint8)
    photo[30:60, 30:60] = random_photo(1, 30, 30) // 2
    settings = NSASettings(background=(200, 60))
    objects = object_mask(photo, settings.background)
    for seed in range(40):
        drawn = draw_defects(photo, settings, _rng(seed))
        for box in drawn.boxes:
            assert objects[max(0, box.top - 3) : box.bottom + 3, max(0, box.left - 3) : box.right + 3].any()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_has_its_sentence(language):
    general = {defect_sentence("gear", "unheard of", language)}
    sentences = {defect_sentence("gear", kind, language) for kind in KINDS}
    assert len(sentences) == len(KINDS) and None not in sentences | general
    rule = defect_sentence("gear", "unheard of", language).replace("unheard of", "{}")
    assert not any(rule.format(kind) in sentences for kind in KINDS), "its own, not the general rule's"


@pytest.mark.data
def test_real_photos_get_visible_defects(real_photos):
    records = [record for record in index_mvtec(real_photos) if record.split == "train"][::40]
    shown = 0
    for number, record in enumerate(records):
        photo = np.array(load_image(record.image).resize((224, 224)))
        drawn = draw_defects(photo, nsa_settings(record.class_name), _rng(number))
        assert_agrees(photo, drawn)
        shown += drawn.is_anomalous
    assert shown >= 0.95 * len(records)


def _rng(seed):
    return np.random.default_rng(seed)
