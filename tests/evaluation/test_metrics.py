"""Every number here was worked out by hand."""

import numpy as np
import pytest

from anomalygpt.evaluation.metrics import answer_accuracy, image_auroc, mean_known, pixel_auroc


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    # Anomalous .8 and .4 against good .6, .1, .2: of six pairs only (.4, .6) is wrong.
    assert image_auroc([0.8, 0.6, 0.4, 0.1, 0.2], [True, False, True, False, False]) == pytest.approx(5 / 6)


def test_a_tie_counts_half():
    assert image_auroc([0.5, 0.5, 0.1], [True, False, False]) == pytest.approx(0.75)


def test_auroc_of_one_kind_of_photo_is_not_defined():
    assert image_auroc([0.1, 0.2], [True, True]) is None
    assert image_auroc([0.1, 0.2], [False, False]) is None
    assert pixel_auroc(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), bool)) is None


def test_pixels_of_all_photos_are_ranked_together():
    # Within each photo the order is perfect, but .3 of the first lies below .5 of the second: 3 of 4 pairs.
    maps = np.array([[[0.3, 0.1]], [[0.9, 0.5]]], dtype=np.float32)
    masks = np.array([[[True, False]], [[True, False]]])
    assert pixel_auroc(maps, masks) == pytest.approx(3 / 4)


def test_maps_and_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        pixel_auroc(np.zeros((1, 2, 2), np.float32), np.zeros((1, 4, 4), bool))


def test_an_answer_without_a_verdict_is_wrong():
    assert answer_accuracy([True, None, False, True], [True, False, False, False]) == 0.5
    assert answer_accuracy([], []) is None


def test_mean_leaves_out_what_is_not_defined():
    assert mean_known([0.5, None, 1.0]) == 0.75
    assert mean_known([None]) is None
