"""From which score on a photo, and from which value on a pixel, is anomalous: told by the references alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scipy import stats
from torch import Tensor

# The largest value of a good photo's map is log-normal: its logarithm varies about a centre that the held-out maps
# tell, by a spread that they tell together with what is known of other parts.
SPREAD = 0.15  # of the logarithm, between good photos of one part
SPREAD_COUNTS = 6.0  # so many photos' worth that the number above weighs against the references' own spread
NEARER = 0.12  # distances fall with the number of references K as K ** -NEARER; held out, a photo has K - 1
LEAN = 0.5  # how far the centre leans to what is usual for good photos of other parts, where that is known
USUAL_FOR = 4  # the number of references that a usual score is stated for
SHARPNESS = 2.0  # of the probability: how fast its log-odds rise, per spread
LOWEST = 0.05  # the same photo twice differs in nothing, and then everything would be anomalous


class Calibrated(Protocol):
    """What scores and pixels are held against."""

    @property
    def threshold(self) -> float:
        """The map's value above which pixels form regions."""
        ...

    def probability(self, score: float) -> float:
        """That the photo is anomalous, 0..1; above one half is the verdict."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Of the maps that come from references.

    Attributes:
        threshold: what the largest value of a good photo's map exceeds as often as the false-alarm rate says.
        limit: the score that a good photo exceeds as often; there the probability is one half.
        slope: log-odds per unit of the score's logarithm.
    """

    threshold: float
    limit: float
    slope: float

    def probability(self, score: float) -> float:
        """That a photo with this image score is anomalous, 0..1: a rising function, one half at the limit."""
        odds = self.slope * math.log(max(score, LOWEST**2) / self.limit)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))


@dataclass(frozen=True)
class TextCalibration:
    """Of text maps, which are probabilities themselves: as they are, where the threshold is one half."""

    threshold: float

    def probability(self, score: float) -> float:
        """The score, 0..1; straight from 0 to one half at the threshold, and from there to 1."""
        if score <= self.threshold:
            return max(0.0, score) / (2 * self.threshold) if self.threshold else 0.5
        return 1 - (1 - min(1.0, score)) / (2 * (1 - self.threshold))


def calibrate(
    held_out_scores: Sequence[float],
    held_out_maps: Tensor,
    false_alarm_rate: float,
    *,
    references: int,
    usual_score: float | None = None,
) -> Calibration:
    """What good photos that the memory did not hold tell of those to come.

    Args:
        held_out_scores: image scores of the maps.
        held_out_maps: (M, 1, S, S), see ``References.held_out_maps``.
        false_alarm_rate: how often a good photo may be taken for an anomalous one, above 0, below 1.
        references: K, how many are remembered.
        usual_score: the typical score of a good photo of any part against four references, in maps of the same kind;
            a few references tell their own part's less well than many parts together do. None trusts the references
            alone.
    """
    logs = [math.log(max(value, LOWEST**2)) for value in held_out_scores]
    limit, spread = _limit(logs, false_alarm_rate, references, usual_score)
    # A map's largest value lies a little above its score, by as much as it does on the held-out maps.
    peaks = [math.log(max(value, LOWEST**2)) for value in held_out_maps.flatten(1).amax(dim=1).tolist()]
    above = math.exp(_mean(peaks) - _mean(logs))
    return Calibration(max(LOWEST, limit * above), max(LOWEST, limit), SHARPNESS / spread)


def _limit(
    logs: Sequence[float], false_alarm_rate: float, references: int, usual_score: float | None
) -> tuple[float, float]:
    """(what a new good photo's score exceeds with this probability, the spread of its logarithm).

    Args:
        logs: of the held-out scores.
    """
    centre = _mean(logs)
    if references == 1:  # retakes of one photo are no photos of their own
        known, squares = 1, 0.0
    else:
        known, squares = len(logs), sum((log - centre) ** 2 for log in logs)
        centre += NEARER * math.log((references - 1) / references)
    if usual_score is not None:
        centre += LEAN * (math.log(usual_score) + NEARER * math.log(USUAL_FOR / references) - centre)
    # The predictive distribution of a normal variable under a conjugate prior on its variance.
    freedom = SPREAD_COUNTS + known - 1
    spread = math.sqrt((SPREAD_COUNTS * SPREAD**2 + squares) / freedom * (1 + 1 / known))
    return math.exp(centre + spread * float(stats.t.ppf(1 - false_alarm_rate, freedom))), spread


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
