"""Pixel metrics against scikit-learn and AUPRO's definition, exact and rounded, with the bound on the error."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalygpt.evaluation.pixels import PRO_LIMIT, PixelCounts, Region, ordered_keys

METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro")


def exact(maps, masks):
    """(AUROC, AP, F1-max, AUPRO) from all pixels sorted."""
    scores, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return roc_auc_score(truth, scores), average_precision_score(truth, scores), f1.max(), exact_aupro(maps, masks)


def exact_aupro(maps, masks):
    """By its definition: for each threshold, the mean over regions of the share that is found."""
    regions = [
        map_[labels == number]
        for map_, (labels, count) in ((m, ndimage.label(k, np.ones((3, 3)))) for m, k in zip(maps, masks, strict=True))
        for number in range(1, count + 1)
    ]
    sound = np.sort(maps[~masks])
    thresholds = np.unique(maps)[::-1]
    rate = np.append(0, 1 - np.searchsorted(sound, thresholds) / len(sound))
    found = np.append(0, np.mean([[(region >= t).mean() for t in thresholds] for region in regions], axis=0))
    inside = rate <= PRO_LIMIT
    x = np.append(rate[inside], PRO_LIMIT)
    y = np.append(found[inside], np.interp(PRO_LIMIT, rate, found))
    return ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / PRO_LIMIT


def counted(maps, masks, **options):
    counts = PixelCounts(**options)
    for map_, mask in zip(maps, masks, strict=True):
        counts.add(map_, mask)
    return counts


def photos(scores):
    """Maps of a kind that `scores` draws, higher on two touching or separate squares a photo."""
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 24, 24), dtype=bool)
    masks[0, 2:6, 2:6] = masks[0, 6:9, 6:9] = True  # one region: they touch at a corner
    masks[1, 10:20, 3:5] = masks[1, 20:22, 20:23] = True
    masks[2, 0, 0] = True
    return scores(rng, masks.shape, masks).astype(np.float32), masks


KINDS = {
    "continuous": lambda rng, shape, masks: rng.random(shape) + 0.6 * masks,
    "far below one": lambda rng, shape, masks: 1e-5 * (rng.random(shape) + 0.4 * masks),
    "over all magnitudes": lambda rng, shape, masks: 10 ** (rng.uniform(-36, -3, shape) + 8 * masks),
    "negative too": lambda rng, shape, masks: rng.normal(0, 100, shape) + 90 * masks,
    "tied": lambda rng, shape, masks: np.round(4 * rng.random(shape) + 2 * masks) / 4,
    "all the same": lambda rng, shape, masks: np.full(shape, 0.5),
    "finer than rounding": lambda rng, shape, masks: 1 + 1e-3 * (rng.random(shape) + 0.3 * masks),
}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_are_exact(kind):
    maps, masks = photos(KINDS[kind])
    found, _ = counted(maps, masks).metrics()
    assert [found[name] for name in METRICS] == [(pytest.approx(true), 0) for true in exact(maps, masks)]


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_rounded_scores_are_within_their_bound_of_the_exact_ones(kind):
    maps, masks = photos(KINDS[kind])
    counts = counted(maps, masks, max_scores=300)
    found, _ = counts.metrics()
    assert counts.is_rounded or kind in ("tied", "all the same")
    for name, true in zip(METRICS, exact(maps, masks), strict=True):
        value, error = found[name]
        assert abs(value - true) <= error + 1e-9, name
        assert 0 <= error < 0.003 or kind in ("all the same", "finer than rounding"), name


@pytest.mark.parametrize("max_scores", [1, 10**9])
def test_the_order_of_photos_does_not_matter(max_scores):
    maps, masks = photos(KINDS["continuous"])
    one, other = (counted(maps[order], masks[order], max_scores=max_scores) for order in ([0, 1, 2, 3], [3, 1, 2, 0]))
    assert one.metrics()[0] == {key: pytest.approx(value, abs=1e-12) for key, value in other.metrics()[0].items()}
    assert (one.regions, one.photos) == (other.regions, other.photos) == (4, 4)


def test_keys_rise_where_scores_rise_and_are_equal_where_scores_are():
    scores = np.concatenate([np.linspace(-3, 3, 5001), [1e-42, -1e-42, 70000, 3e38, -3e38]]).astype(np.float32)
    keys = ordered_keys(np.unique(scores)).astype(np.int64)
    assert (np.diff(keys) > 0).all()
    assert ordered_keys(np.float32([0.0])) == ordered_keys(np.float32([-0.0]))


def test_saturated_overlap_counts_no_further_than_what_is_needed():
    # A region of ten pixels of which four are needed; half of them score 1, the others 0, the background in between.
    mask = np.zeros((1, 20), dtype=bool)
    mask[0, :10] = True
    scores = np.full((1, 20), 0.5, dtype=np.float32)
    scores[0, :5], scores[0, 5:10] = 1, 0
    # Left of the step at the background's score, (0, overlap) is the first point of the curve.
    for regions, expected in ((None, 0.5), ([Region(mask, needed=4)], 1)):
        counts = PixelCounts()
        counts.add(scores, mask, regions)
        rate, overlap = counts.metrics()[1]["pro"]
        assert overlap[rate == 0].max() == pytest.approx(expected)


def test_one_kind_of_pixel_has_no_metrics():
    counts = PixelCounts()
    assert counts.metrics() == ({}, {})
    counts.add(np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))
    assert counts.metrics() == ({}, {})


def test_what_is_no_map_of_the_mask_is_refused():
    with pytest.raises(ValueError, match="same shape"):
        PixelCounts().add(np.zeros((2, 2), np.float32), np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="finite"):
        PixelCounts().add(np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), bool))
