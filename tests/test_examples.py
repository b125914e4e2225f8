"""Drawn parts: what the demo's examples are."""

import numpy as np
import pytest

from anomalygpt.datasets.photos import load_image
from anomalygpt.inference.predictor import Predictor
from images.make_examples import PARTS, SIDE, WITHOUT_GOOD, render
from tests.shared_data import ROOT

NAMES = {"defect": "defective", "defect_evening": "defective", "whole_evening": "good"}


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


@pytest.mark.weights
@pytest.mark.parametrize("part", [part for part in PARTS if part not in WITHOUT_GOOD])
def test_every_defect_is_found_and_the_whole_part_is_good_in_both_kinds_of_light(
    compact_predictor: Predictor, part: str
) -> None:
    folder, predictor = ROOT / "images" / "examples" / part, compact_predictor.without_references()
    predictor.set_references([load_image(photo) for photo in sorted(folder.glob("good_*.jpg"))])
    found = {name: predictor.inspect(load_image(folder / f"{name}.jpg"), part) for name in NAMES}
    assert {name: result.status for name, result in found.items()} == NAMES
    assert len(found["defect"].regions) == len(found["defect_evening"].regions)
