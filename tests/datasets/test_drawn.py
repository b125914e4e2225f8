"""Drawn anomalies: of every kind, marked where they changed the photo, on the object. See also test_synthesis.py."""

import numpy as np
import pytest

from anomalygpt.datasets.dialogue import defect_sentence
from anomalygpt.datasets.drawn import KINDS, VISIBLE, draw_defects
from anomalygpt.datasets.synthesis import NSASettings, object_mask
from tests.datasets.test_synthesis import random_photo


def test_every_kind_comes_up_alone_and_twice():
    rng = np.random.default_rng(0)
    drawn = [draw_defects(random_photo(number % 8), NSASettings(), rng) for number in range(300)]
    assert {defects.kind for defects in drawn} >= set(KINDS)
    assert {len(defects.boxes) for defects in drawn} >= {1, 2}


def test_what_is_marked_has_changed_and_little_else():
    photo = random_photo(3, 128, 128)
    for seed in range(50):
        drawn = draw_defects(photo, NSASettings(), np.random.default_rng(seed))
        change = np.abs(drawn.image.astype(float) - photo).mean(axis=2)
        marked = drawn.mask > 0.3
        assert change[marked].mean() > VISIBLE
        rows, columns = np.nonzero(change)
        near = np.zeros_like(marked)
        for row, column in zip(*np.nonzero(marked), strict=True):
            near[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
        assert near[rows, columns].all(), "no pixel changes more than two pixels away from the mark"


def test_defects_touch_the_object_where_the_background_is_known():
    photo = np.full((96, 96, 3), 200, np.uint8)
    photo[30:60, 30:60] = random_photo(1, 30, 30) // 2
    settings = NSASettings(background=(200, 60))
    objects = object_mask(photo, settings.background)
    for seed in range(40):
        drawn = draw_defects(photo, settings, np.random.default_rng(seed))
        assert all(objects[box.pixels(3)].any() for box in drawn.boxes)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_kind_has_its_sentence(language):
    general = {defect_sentence("gear", "unheard of", language)}
    sentences = {defect_sentence("gear", kind, language) for kind in KINDS}
    assert len(sentences) == len(KINDS) and None not in sentences | general
    rule = defect_sentence("gear", "unheard of", language).replace("unheard of", "{}")
    assert not any(rule.format(kind) in sentences for kind in KINDS), "its own, not the general rule's"
