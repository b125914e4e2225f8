"""Every number here was worked out by hand."""

import pytest

from anomalygpt.evaluation.metrics import (
    accuracy,
    false_alarm_rate,
    hindsight_accuracy,
    image_metrics,
    recall,
)

FIRST, SECOND = ([0.1, 0.3], [False, True]), ([0.4, 0.6], [False, True])
SCORES, TRUTH = [0.8, 0.6, 0.4, 0.1, 0.2], [True, False, True, False, False]


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    # Anomalous .8 and .4 against good .6, .1, .2: of six pairs only (.4, .6) is wrong.
    assert image_metrics(SCORES, TRUTH)["image_auroc"] == pytest.approx(5 / 6)


def test_a_tie_counts_half():
    assert image_metrics([0.5, 0.5, 0.1], [True, False, False])["image_auroc"] == pytest.approx(0.75)


def test_average_precision_weighs_each_gain_in_recall_by_its_precision():
    # Half of the recall at precision 1, the other half at 2 of 3.
    assert image_metrics(SCORES, TRUTH)["image_ap"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_f1_max_is_the_best_compromise():
    # At .4: precision 2/3, recall 1.
    assert image_metrics(SCORES, TRUTH)["image_f1_max"] == pytest.approx(0.8)


def test_metrics_of_one_kind_of_photo_are_not_defined():
    assert image_metrics([0.1, 0.2], [True, True]) == image_metrics([0.1, 0.2], [False, False]) == {}


def test_an_answer_without_a_verdict_is_wrong():
    assert accuracy([True, None, False, True], [True, False, False, False]) == 0.5
    assert accuracy([], []) is None


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([(SCORES, TRUTH)], 0.8),  # at .4 only .6 is wrong, or at .8 only .4
        ([([0.5, 0.5, 0.5], [True, False, False])], 2 / 3),  # ties stay together
        ([([0.2, 0.9], [True, False])], 0.5),
        ([([0.5], [True])], 1),  # all may be anomalous
        ([FIRST], 1),
        ([SECOND], 1),
        # At .4 the first class's defect is missed, at .1 the second's good photo is a false alarm.
        ([FIRST, SECOND], 0.75),
        # Classes weigh alike, however many photos they have: at .4 only one of the first class's three is wrong.
        ([([0.1, 0.1, 0.3], [False, False, True]), SECOND], 5 / 6),
    ],
)
def test_the_best_threshold_in_hindsight_for_all_classes_together(classes, expected):
    assert hindsight_accuracy(classes) == pytest.approx(expected)


def test_hindsight_of_no_photo_is_not_defined():
    assert hindsight_accuracy([FIRST, ([], [])]) is None
    assert hindsight_accuracy([]) is None


def test_recall_is_of_the_anomalous_and_false_alarms_of_the_good():
    said, truth = [True, False, True, False, False], [True, True, False, False, False]
    assert recall(said, truth) == 0.5
    assert false_alarm_rate(said, truth) == pytest.approx(1 / 3)
    assert recall([True], [False]) is None and false_alarm_rate([True], [True]) is None
