"""Counting in bins against the exact metrics, and the bound that says how far apart they may be."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalygpt.evaluation.pixels import (
    BINS,
    PRO_LIMIT,
    PixelCounts,
    Region,
    aupro,
    auroc,
    average_precision,
    bins_of,
    curves,
    f1_max,
)

SLACK = 1e-6  # shares of regions are rounded to 2^-42


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


def counted(maps, masks):
    counts = PixelCounts.empty()
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
    "finer than the bins": lambda rng, shape, masks: 1 + 1e-3 * (rng.random(shape) + 0.3 * masks),
}


@pytest.mark.parametrize("kind", KINDS)
def test_binned_metrics_are_within_their_bound_of_the_exact_ones(kind):
    maps, masks = photos(KINDS[kind])
    found = curves(counted(maps, masks))
    for metric, true in zip((auroc, average_precision, f1_max, aupro), exact(maps, masks), strict=True):
        value, error = metric(found)
        assert abs(value - true) <= error + SLACK, metric.__name__


@pytest.mark.parametrize("metric", [auroc, average_precision, f1_max, aupro])
@pytest.mark.parametrize("kind", ["continuous", "over all magnitudes"])
def test_the_bound_is_small_where_scores_are_spread_out(kind, metric):
    maps, masks = photos(KINDS[kind])
    assert 0 <= metric(curves(counted(maps, masks))).error < 0.003


def test_scores_that_share_no_bin_unless_equal_are_exact():
    maps, masks = photos(KINDS["tied"])
    found = curves(counted(maps, masks))
    for metric, true in zip((auroc, average_precision, f1_max, aupro), exact(maps, masks), strict=True):
        assert metric(found).value == pytest.approx(true, abs=SLACK)


def test_bins_never_fall_where_scores_rise():
    scores = np.concatenate([np.linspace(-3, 3, 5001), [0, -0.0, 1e-30, -1e-30, 3e38, -3e38]]).astype(np.float32)
    order = np.argsort(scores, kind="stable")
    bins = bins_of(scores)
    assert (np.diff(bins[order]) >= 0).all()
    assert bins.min() == 0 and bins.max() == BINS - 1
    assert len(np.unique(bins[2500:5001])) == 2501, "steps of a thousandth are told apart, from zero on"
    assert set(bins[:2500]) == {0}, "all below zero is one"


def test_counts_are_equal_in_whatever_order_and_shares_photos_are_added():
    maps, masks = photos(KINDS["continuous"])
    whole = counted(maps, masks)
    parts = counted(maps[[3, 1]], masks[[3, 1]])
    parts.merge(counted(maps[[2, 0]], masks[[2, 0]]))
    for name in ("sound", "defective", "overlap"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert (whole.regions, whole.photos) == (parts.regions, parts.photos) == (4, 4)


def test_saturated_overlap_counts_no_further_than_what_is_needed():
    # A region of ten pixels of which four are needed; half of them score 1, the others 0, the background in between.
    mask = np.zeros((1, 20), dtype=bool)
    mask[0, :10] = True
    scores = np.full((1, 20), 0.5, dtype=np.float32)
    scores[0, :5], scores[0, 5:10] = 1, 0
    plain, saturated = PixelCounts.empty(), PixelCounts.empty()
    plain.add(scores, mask)
    saturated.add(scores, mask, [Region(mask, needed=4)])
    assert curves(plain).overlap[1] == pytest.approx(0.5)
    assert curves(saturated).overlap[1] == 1


def test_one_kind_of_pixel_has_no_curve():
    counts = PixelCounts.empty()
    assert curves(counts) is None
    counts.add(np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))
    assert curves(counts) is None


def test_what_is_no_map_of_the_mask_is_refused():
    with pytest.raises(ValueError, match="same shape"):
        PixelCounts.empty().add(np.zeros((2, 2), np.float32), np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="finite"):
        PixelCounts.empty().add(np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), bool))
