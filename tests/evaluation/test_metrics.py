"""Image metrics worked out by hand; pixel metrics against scikit-learn and AUPRO's definition, exact and rounded."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalygpt.datasets.records import DatasetError
from anomalygpt.evaluation import metrics
from anomalygpt.evaluation.metrics import PRO_LIMIT, PixelCounts, image_metrics

SCORES, ANOMALOUS = [0.8, 0.6, 0.4, 0.1, 0.2], [True, False, True, False, False]


@pytest.mark.parametrize(
    ("scores", "anomalous", "expected"),
    [
        # AUROC: anomalous .8 and .4 against good .6, .1, .2: of six pairs only (.4, .6) is in the wrong order.
        # AP: half of the recall at precision 1, the other half at 2 of 3. F1-max: at .4 precision 2/3 and recall 1.
        (SCORES, ANOMALOUS, {"image_auroc": 5 / 6, "image_ap": 0.5 * 1 + 0.5 * 2 / 3, "image_f1_max": 0.8}),
        # A tie counts half.
        ([0.5, 0.5, 0.1], [True, False, False], {"image_auroc": 0.75, "image_ap": 0.5, "image_f1_max": 2 / 3}),
        ([0.1, 0.2], [True, True], {}),
        ([0.1, 0.2], [False, False], {}),
    ],
)
def test_image_metrics(scores, anomalous, expected):
    found = image_metrics(scores, anomalous)
    assert bool(expected) == ("hindsight_accuracy" in found), "see below"
    found.pop("hindsight_accuracy", None)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "anomalous", "expected"),
    [
        (SCORES, ANOMALOUS, 0.8),  # at .4 only .6 is wrong, or at .8 only .4
        ([0.5, 0.5, 0.5], [True, False, False], 2 / 3),  # ties stay together
        ([0.2, 0.9], [True, False], 0.5),
        ([0.2, 0.9], [False, True], 1),
        ([0.3, 0.1, 0.2, 0.4], [True, True, True, False], 0.75),  # all may be anomalous
    ],
)
def test_the_best_threshold_in_hindsight(scores, anomalous, expected):
    assert image_metrics(scores, anomalous)["hindsight_accuracy"] == pytest.approx(expected)


def exact(maps, masks):
    """The metrics from all pixels sorted."""
    scores, anomalous = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    return {
        "pixel_auroc": roc_auc_score(anomalous, scores),
        "pixel_ap": average_precision_score(anomalous, scores),
        "pixel_f1_max": (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max(),
        "aupro": exact_aupro(maps, masks),
    }


def exact_aupro(maps, masks):
    """By its definition: for each threshold, the mean over regions of the fraction that is found."""
    regions = [
        map_[labels == number]
        for map_, (labels, count) in ((m, ndimage.label(k, np.ones((3, 3)))) for m, k in zip(maps, masks, strict=True))
        for number in range(1, count + 1)
    ]
    normal = np.sort(maps[~masks])
    thresholds = np.unique(maps)[::-1]
    rate = np.append(0, 1 - np.searchsorted(normal, thresholds) / len(normal))
    found = np.append(0, np.mean([[(region >= t).mean() for t in thresholds] for region in regions], axis=0))
    inside = rate <= PRO_LIMIT
    x = np.append(rate[inside], PRO_LIMIT)
    y = np.append(found[inside], np.interp(PRO_LIMIT, rate, found))
    return ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / PRO_LIMIT


def count(maps, masks):
    counts = PixelCounts()
    for map_, mask in zip(maps, masks, strict=True):
        counts.add(map_, mask)
    return counts


KINDS = {
    "continuous": lambda rng, shape, masks: rng.random(shape) + 0.6 * masks,
    "over all magnitudes": lambda rng, shape, masks: 10 ** (rng.uniform(-36, -3, shape) + 8 * masks),
    "negative too": lambda rng, shape, masks: rng.normal(0, 100, shape) + 90 * masks,
    "tied": lambda rng, shape, masks: np.round(4 * rng.random(shape) + 2 * masks) / 4,
    "all the same": lambda rng, shape, masks: np.full(shape, 0.5),
    "with an offset": lambda rng, shape, masks: 1 + 1e-3 * (rng.random(shape) + 0.3 * masks),
    "large": lambda rng, shape, masks: 1e6 * (rng.random(shape) + 0.3 * masks),
    "far above 65536": lambda rng, shape, masks: 2**23 + np.round(2000 * (rng.random(shape) + 0.3 * masks)),
    "far below 0": lambda rng, shape, masks: -(2**23) + np.round(2000 * (rng.random(shape) + 0.3 * masks)),
}


def photos(kind):
    """Maps of a kind, higher on two touching or separate squares per photo."""
    masks = np.zeros((4, 24, 24), dtype=bool)
    masks[0, 2:6, 2:6] = masks[0, 6:9, 6:9] = True  # one region: they touch at a corner
    masks[1, 10:20, 3:5] = masks[1, 20:22, 20:23] = True
    masks[2, 0, 0] = True
    return KINDS[kind](np.random.default_rng(0), masks.shape, masks).astype(np.float32), masks


@pytest.mark.parametrize("kind", KINDS)
def test_pixel_metrics_are_exact_and_hardly_differ_where_neighbours_count_as_one(kind, monkeypatch):
    maps, masks = photos(kind)
    expected = exact(maps, masks)
    assert count(maps, masks).metrics() == pytest.approx(expected)
    monkeypatch.setattr(metrics, "MAX_SCORES", 1500)
    assert count(maps, masks).metrics() == pytest.approx(expected, abs=0.02)


def test_pixels_of_one_kind_have_no_metrics():
    counts = PixelCounts()
    assert counts.metrics() == {}
    counts.add(np.zeros((2, 2), np.float32), np.zeros((2, 2), bool))
    assert counts.metrics() == {}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8])
def test_scores_of_any_type_are_counted(dtype, monkeypatch):
    maps, masks = photos("tied")
    maps = (4 * maps).astype(dtype)
    for most in (metrics.MAX_SCORES, 20):
        monkeypatch.setattr(metrics, "MAX_SCORES", most)
        assert count(maps, masks).metrics() == pytest.approx(exact(maps, masks))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    for anomalous in ([True, False], [True, True]):
        with pytest.raises(DatasetError, match="are not finite numbers; expected"):
            image_metrics([0.0, value], anomalous)
