"""What the reference photos alone tell of good photos to come."""

import math

import pytest
import torch

from anomalygpt.inference.calibration import LEAN, LOWEST, NEARER, Calibration, TextCalibration, calibrate


def from_maxima(*values: float, rate: float = 0.05, references: int | None = None) -> Calibration:
    """Held-out maps that have these maxima, whose score is the maximum."""
    maps = torch.zeros(len(values), 1, 8, 8)
    maps[:, 0, 3, 5] = torch.tensor(values)
    return calibrate(values, maps, rate, references=references or len(values))


def test_probability_is_one_half_at_the_limit_and_rises() -> None:
    found = from_maxima(0.2, 0.22, 0.25, 0.21)
    assert found.probability(found.limit) == pytest.approx(0.5)
    rising = [found.probability(score) for score in (-1.0, 0.0, 0.1, 0.2, found.limit, 0.4, 0.9, 1e9)]
    assert rising == sorted(rising)
    assert 0 <= rising[0] < 0.01
    assert 0.99 < rising[-2] <= rising[-1] <= 1


def test_limit_and_threshold_are_one_where_the_score_is_the_maximum() -> None:
    found = from_maxima(0.2, 0.22, 0.25, 0.21)
    assert found.limit == pytest.approx(found.threshold)


def test_pixels_have_a_threshold_of_their_own_where_the_score_is_a_mean() -> None:
    maps = torch.full((4, 1, 8, 8), 0.3)
    found = calibrate([0.2] * 4, maps, 0.05, references=4)
    assert found.threshold == pytest.approx(1.5 * found.limit)


def test_fewer_false_alarms_need_a_higher_limit() -> None:
    limits = [from_maxima(0.2, 0.22, 0.25, 0.21, rate=rate).limit for rate in (0.5, 0.2, 0.05, 0.01)]
    assert limits == sorted(limits)
    assert len(set(limits)) == 4


def test_units_do_not_matter() -> None:
    """Twice the distances have twice the limit, and the same probabilities."""
    values = (0.2, 0.22, 0.25, 0.21)
    once, twice = from_maxima(*values), from_maxima(*(2 * value for value in values))
    assert twice.limit == pytest.approx(2 * once.limit)
    assert twice.probability(0.7) == pytest.approx(once.probability(0.35))


def test_references_that_differ_more_leave_more_room() -> None:
    close, apart = from_maxima(0.20, 0.21, 0.20, 0.21), from_maxima(0.10, 0.40, 0.11, 0.38)
    assert apart.limit / 0.205 > 1.3 * close.limit / 0.205
    assert apart.slope < close.slope


def test_more_references_leave_less_doubt() -> None:
    """The same spread, seen on four photos and on forty."""
    few, many = (from_maxima(*[0.18, 0.22] * count) for count in (2, 20))
    assert many.limit < few.limit


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_good_photos_exceed_the_limit_as_often_as_stated(rate: float) -> None:
    """Photos of many parts, each with its own centre, of the spread that the module takes for usual."""
    generator = torch.Generator().manual_seed(0)
    alarms = []
    for _ in range(400):
        logs = math.log(0.3) + 0.15 * torch.randn(4, generator=generator)
        found = from_maxima(*logs.exp().tolist(), rate=rate, references=1000)
        alarms.append(float((math.log(0.3) + 0.15 * torch.randn((), generator=generator)).exp()) > found.limit)
    assert abs(sum(alarms) / len(alarms) - rate) < 0.04


def test_retakes_of_one_photo_do_not_count_as_photos() -> None:
    """However alike they are, as much doubt is left as with a single one."""
    one, several = from_maxima(0.2, references=1), from_maxima(*[0.2] * 12, references=1)
    assert one.limit == pytest.approx(several.limit)


def test_what_is_usual_for_other_parts_is_leaned_to() -> None:
    """Whatever the references say, the limit comes nearer to that of usual ones; those that are usual do not move."""
    for value in (0.1, 0.2, 0.4):
        maps = torch.full((4, 1, 8, 8), value)
        alone = calibrate([value] * 4, maps, 0.05, references=1000)
        leaning = calibrate([value] * 4, maps, 0.05, references=1000, usual_score=0.2 * (1000 / 4) ** NEARER)
        usual = calibrate([0.2] * 4, torch.full_like(maps, 0.2), 0.05, references=1000)
        assert leaning.limit / usual.limit == pytest.approx((alone.limit / usual.limit) ** (1 - LEAN), rel=1e-3)


def test_same_photo_twice_does_not_make_everything_anomalous() -> None:
    found = from_maxima(0.0, 0.0)
    assert found.threshold == LOWEST > 0
    assert found.probability(0.01) < 0.5


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_text_map_is_a_probability_with_one_half_at_its_threshold(threshold: float) -> None:
    text = TextCalibration(threshold)
    assert [text.probability(score) for score in (0.0, threshold, 1.0)] == pytest.approx([0, 0.5, 1])
    rising = [text.probability(score / 20) for score in range(21)]
    assert rising == sorted(rising)


def test_text_map_with_the_usual_threshold_is_taken_as_it_is() -> None:
    assert [TextCalibration(0.5).probability(score) for score in (0.1, 0.4, 0.9)] == pytest.approx([0.1, 0.4, 0.9])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_text_threshold_at_an_end_still_gives_probabilities(threshold: float) -> None:
    text = TextCalibration(threshold)
    assert all(0 <= text.probability(score) <= 1 for score in (0.0, 0.5, 1.0))
