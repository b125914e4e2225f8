"""Thresholds and probabilities from the references alone."""

import math

import pytest
import torch

from anomalygpt.config.settings import PartsPrior
from anomalygpt.inference.calibration import LOWEST, NOT_SHOWN, Calibration, TextCalibration, calibrate


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
    assert rising[0] == pytest.approx(NOT_SHOWN, abs=0.01)
    assert 0.99 < rising[-2] <= rising[-1] <= 1


def test_pixels_have_a_threshold_of_their_own_where_the_score_is_a_mean() -> None:
    maps = torch.full((4, 1, 8, 8), 0.3)
    found = calibrate([0.2] * 4, maps, 0.05, references=4)
    assert found.threshold == pytest.approx(1.5 * found.score_threshold)
    maximum = from_maxima(0.2, 0.22, 0.25, 0.21)
    assert maximum.threshold == pytest.approx(maximum.score_threshold)


def test_units_do_not_matter() -> None:
    """Twice the distances have twice the threshold, and the same probabilities."""
    values = (0.2, 0.22, 0.25, 0.21)
    once, twice = from_maxima(*values), from_maxima(*(2 * value for value in values))
    assert twice.score_threshold == pytest.approx(2 * once.score_threshold)
    assert twice.probability(0.7) == pytest.approx(once.probability(0.35))


def test_threshold_rises_with_the_spread_and_falls_with_the_number_of_references() -> None:
    close, apart = from_maxima(0.20, 0.21, 0.20, 0.21), from_maxima(0.10, 0.40, 0.11, 0.38)
    assert apart.score_threshold > 1.3 * close.score_threshold
    assert apart.slope < close.slope
    few, many = (from_maxima(*[0.18, 0.22] * count) for count in (2, 20))
    assert many.score_threshold < few.score_threshold


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_good_photos_exceed_the_threshold_as_often_as_stated(rate: float) -> None:
    """Photos of many parts, each with its own centre, of the prior's spread."""
    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for _ in range(400):
        *references, new = (math.log(0.3) + 0.15 * torch.randn(5, generator=generator)).exp().tolist()
        alarms += new > from_maxima(*references, rate=rate, references=1000).score_threshold
    assert abs(alarms / 400 - rate) < 0.04


def test_perturbations_of_one_photo_do_not_count_as_photos() -> None:
    """However alike they are, as much doubt is left as with a single one."""
    one, several = from_maxima(0.2, references=1), from_maxima(*[0.2] * 12, references=1)
    assert one.score_threshold == pytest.approx(several.score_threshold)


PARTS = PartsPrior(references=(1, 4), centre=(-1, -1.2), held_out=(-1.1, -1), weight=(0, 0.5), error=(0, 0), spread=0.2)


def test_other_parts_say_how_much_of_a_difference_to_expect_again() -> None:
    """On a logarithmic scale; a weight of zero leaves nothing of the references' own scores."""

    def threshold(value: float, references: int, scale: float = 1.0) -> float:
        maps = torch.full((4, 1, 8, 8), value)
        return math.log(
            calibrate([value] * 4, maps, 0.5, references=references, parts=PARTS, scale=scale).score_threshold
        )

    assert threshold(math.exp(-1), 4) == pytest.approx(-1.2)
    assert threshold(math.exp(-0.6), 4) == pytest.approx(-1.0)
    assert threshold(math.exp(-0.6), 1) == pytest.approx(-1.0) == threshold(0.9, 1)
    between = threshold(math.exp(-1), 2)
    assert between == pytest.approx((-1 - 1.2) / 2 + 0.25 * (-1 + 1.05)), "linear in the logarithm of the number"
    halved = threshold(math.exp(-0.6) / 2, 4, scale=0.5)
    assert halved == pytest.approx(threshold(math.exp(-0.6), 4) - math.log(2)), "scores that are all halved"


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_good_photos_of_parts_like_the_others_exceed_the_threshold_as_often_as_stated(rate: float) -> None:
    parts = PartsPrior(references=(4,), centre=(-1,), held_out=(-1,), weight=(0.8,), error=(0.1,), spread=0.15)
    generator, alarms = torch.Generator().manual_seed(0), 0
    for _ in range(600):
        centre = -1 + 0.25 * torch.randn(1, generator=generator)
        *references, new = (centre + 0.15 * torch.randn(5, generator=generator)).exp().tolist()
        maps = torch.zeros(4, 1, 8, 8) + 0.3
        alarms += new > calibrate(references, maps, rate, references=4, parts=parts).score_threshold
    assert abs(alarms / 600 - rate) < 0.04


def test_same_photo_twice_does_not_make_everything_anomalous() -> None:
    found = from_maxima(0.0, 0.0)
    assert found.threshold == LOWEST > 0
    assert found.probability(0.01) < 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_text_map_is_a_probability_with_one_half_at_its_threshold(threshold: float) -> None:
    text = TextCalibration(threshold)
    assert text.probability(threshold) == pytest.approx(0.5)
    rising = [text.probability(score / 20) for score in range(21)]
    assert rising == sorted(rising)
    assert 0 <= rising[0] <= rising[-1] <= 1
    if 0 < threshold < 1:
        assert (rising[0], rising[-1]) == pytest.approx((0, 1))
    if threshold == 0.5:
        assert rising == pytest.approx([score / 20 for score in range(21)]), "taken as it is"
