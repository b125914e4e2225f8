"""Drawn parts: what the demo's examples are."""

import numpy as np
import pytest

from images.make_examples import PARTS, SIDE, render


@pytest.mark.parametrize("part", PARTS)
def test_part_is_drawn_the_same_from_a_seed_and_its_mask_is_where_a_defect_changes_it(part: str) -> None:
    whole, again = (render(part, np.random.default_rng(3)) for _ in range(2))
    defective = render(part, np.random.default_rng(3), defective=True)
    assert whole.photo.size == (SIDE, SIDE)
    assert np.array_equal(np.asarray(whole.photo), np.asarray(again.photo))
    assert not whole.mask.any()
    assert 0.001 < defective.mask.mean() < 0.1
    change = np.abs(np.asarray(whole.photo, dtype=float) - np.asarray(defective.photo, dtype=float)).mean(axis=2)
    assert change[defective.mask].mean() > 2 * change[~defective.mask].mean()
