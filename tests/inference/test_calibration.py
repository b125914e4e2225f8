"""Thresholds and probabilities from the references alone."""

import math

import pytest
import torch

from anomalygpt.inference.calibration import K_EXPONENT, LOWEST, SHRINKAGE, Calibration, TextCalibration, calibrate


def from_maxima(*values: float, rate: float = 0.05, references: int | None = None) -> Calibration:
    """Held-out maps that have these maxima, whose score is the maximum."""
    maps = torch.zeros(len(values), 1, 8, 8)
    maps[:, 0, 3, 5] = torch.tensor(values)
    return calibrate(values, maps, rate, references=references or len(values))


def test_probability_is_one_half_at_the_score_threshold_and_rises() -> None:
    found = from_maxima(0.2, 0.22, 0.25, 0.21)
    assert found.probability(found.score_threshold) == pytest.approx(0.5)
    rising = [found.probability(score) for score in (-1.0, 0.0, 0.1, 0.2, found.score_threshold, 0.4, 0.9, 1e9)]
    assert rising == sorted(rising)
    assert 0 <= rising[0] < 0.01
    assert 0.99 < rising[-2] <= rising[-1] <= 1


def test_pixels_have_a_threshold_of_their_own_where_the_score_is_a_mean() -> None:
    maps = torch.full((4, 1, 8, 8), 0.3)
    found = calibrate([0.2] * 4, maps, 0.05, references=4)
    assert found.threshold == pytest.approx(1.5 * found.score_threshold)
    maximum = from_maxima(0.2, 0.22, 0.25, 0.21)
    assert maximum.threshold == pytest.approx(maximum.score_threshold)


def test_fewer_false_alarms_need_a_higher_threshold() -> None:
    thresholds = [from_maxima(0.2, 0.22, 0.25, 0.21, rate=rate).score_threshold for rate in (0.5, 0.2, 0.05, 0.01)]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds)) == 4


def test_units_do_not_matter() -> None:
    """Twice the distances have twice the threshold, and the same probabilities."""
    values = (0.2, 0.22, 0.25, 0.21)
    once, twice = from_maxima(*values), from_maxima(*(2 * value for value in values))
    assert twice.score_threshold == pytest.approx(2 * once.score_threshold)
    assert twice.probability(0.7) == pytest.approx(once.probability(0.35))


def test_references_that_differ_more_leave_more_room() -> None:
    close, apart = from_maxima(0.20, 0.21, 0.20, 0.21), from_maxima(0.10, 0.40, 0.11, 0.38)
    assert apart.score_threshold / 0.205 > 1.3 * close.score_threshold / 0.205
    assert apart.slope < close.slope


def test_more_references_leave_less_doubt() -> None:
    """The same spread, seen on four photos and on forty."""
    few, many = (from_maxima(*[0.18, 0.22] * count) for count in (2, 20))
    assert many.score_threshold < few.score_threshold


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_good_photos_exceed_the_threshold_as_often_as_stated(rate: float) -> None:
    """Photos of many parts, each with its own centre, of the prior's spread."""
    generator = torch.Generator().manual_seed(0)
    alarms = []
    for _ in range(400):
        logs = math.log(0.3) + 0.15 * torch.randn(4, generator=generator)
        found = from_maxima(*logs.exp().tolist(), rate=rate, references=1000)
        alarms.append(
            float((math.log(0.3) + 0.15 * torch.randn((), generator=generator)).exp()) > found.score_threshold
        )
    assert abs(sum(alarms) / len(alarms) - rate) < 0.04


def test_perturbations_of_one_photo_do_not_count_as_photos() -> None:
    """However alike they are, as much doubt is left as with a single one."""
    one, several = from_maxima(0.2, references=1), from_maxima(*[0.2] * 12, references=1)
    assert one.score_threshold == pytest.approx(several.score_threshold)


def test_threshold_shrinks_to_that_of_the_prior_score() -> None:
    """On a logarithmic scale, by the same share whatever the references say."""
    for value in (0.1, 0.2, 0.4):
        maps = torch.full((4, 1, 8, 8), value)
        alone = calibrate([value] * 4, maps, 0.05, references=1000)
        shrunk = calibrate([value] * 4, maps, 0.05, references=1000, prior_score=0.2 * (1000 / 4) ** K_EXPONENT)
        prior = calibrate([0.2] * 4, torch.full_like(maps, 0.2), 0.05, references=1000)
        assert shrunk.score_threshold / prior.score_threshold == pytest.approx(
            (alone.score_threshold / prior.score_threshold) ** (1 - SHRINKAGE), rel=1e-3
        )


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
    if threshold == 0.5:
        assert rising == pytest.approx([score / 20 for score in range(21)]), "taken as it is"


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_text_threshold_at_an_end_still_gives_probabilities(threshold: float) -> None:
    text = TextCalibration(threshold)
    assert all(0 <= text.probability(score) <= 1 for score in (0.0, 0.5, 1.0))
