"""The threshold of the image score and of the map, from the references alone: a log-normal predictive interval.

The logarithm y of a good photo's score is taken for normal, its variance for unknown with a scaled inverse chi-squared
prior. From the scores of n good photos that were held out of the memory bank of K references, with the mean m of their
logarithms and the sum S of squared deviations from it:

    m'  = m + a log((K - 1) / K)                     distances fall as K^-a, and a held-out photo has K - 1 references
    m'' = m' + w (log p + a log(4 / K) - m')         shrinkage to the prior score p, stated for four references
    s^2 = (k s0^2 + S) / (k + n - 1)                 the posterior's scale; the prior s0^2 counts as k photos
    sd  = s sqrt(1 + 1 / n)                          of a new photo's y, Student-t with k + n - 1 degrees of freedom
    score threshold = exp(m'' + t_{1 - f} sd)        exceeded by a good photo at the false-alarm rate f

A single reference gives perturbations of one photo: n = 1, S = 0, and no correction for K - 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats
from torch import Tensor

PRIOR_SD = 0.15  # s0: of the logarithm, between good photos of one part
PRIOR_STRENGTH = 6.0  # k
K_EXPONENT = 0.12  # a
SHRINKAGE = 0.5  # w
PRIOR_REFERENCES = 4  # the number of references that a prior score is stated for
SHARPNESS = 2.0  # of the probability: its log-odds rise by so much per sd
LOWEST = 0.05  # the smallest threshold: two equal references have no distance, and all else would be anomalous


@dataclass(frozen=True)
class Calibration:
    """Of maps that come from references.

    Attributes:
        threshold: the map's value above which pixels form regions; exceeded by the maximum of a good photo's map at
            the false-alarm rate.
        score_threshold: exceeded by a good photo's score at that rate; there the probability is one half.
        slope: log-odds per unit of the score's logarithm.
    """

    threshold: float
    score_threshold: float
    slope: float

    def probability(self, score: float) -> float:
        """That a photo with this image score is anomalous, 0..1: logistic in the logarithm of the score."""
        odds = self.slope * math.log(max(score, LOWEST**2) / self.score_threshold)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))


@dataclass(frozen=True)
class TextCalibration:
    """Of text maps, which are probabilities themselves: unchanged where the threshold is one half."""

    threshold: float

    def probability(self, score: float) -> float:
        """Piecewise linear in the score, 0..1: 0, one half at the threshold, and 1."""
        if score <= self.threshold:
            return max(0.0, score) / (2 * self.threshold) if self.threshold else 0.5
        return 1 - (1 - min(1.0, score)) / (2 * (1 - self.threshold))


def calibrate(
    held_out_scores: Sequence[float],
    held_out_maps: Tensor,
    false_alarm_rate: float,
    *,
    references: int,
    prior_score: float | None = None,
) -> Calibration:
    """Calibrates by good photos that the memory bank did not hold.

    Args:
        held_out_scores: image scores of the maps.
        held_out_maps: (n, 1, S, S), see ``References.held_out_maps``.
        false_alarm_rate: how often a good photo may be taken for an anomalous one, above 0, below 1.
        references: K, how many are remembered.
        prior_score: the typical score of a good photo of any part against four references, in maps of the same kind;
            few references estimate their own part's less well than many parts together do. None: no shrinkage.
    """
    logs = [math.log(max(value, LOWEST**2)) for value in held_out_scores]
    mean = center = sum(logs) / len(logs)
    if references == 1:
        count, squares = 1, 0.0
    else:
        count, squares = len(logs), sum((log - mean) ** 2 for log in logs)
        center += K_EXPONENT * math.log((references - 1) / references)
    if prior_score is not None:
        prior = math.log(prior_score) + K_EXPONENT * math.log(PRIOR_REFERENCES / references)
        center += SHRINKAGE * (prior - center)
    freedom = PRIOR_STRENGTH + count - 1
    sd = math.sqrt((PRIOR_STRENGTH * PRIOR_SD**2 + squares) / freedom * (1 + 1 / count))
    score_threshold = math.exp(center + sd * float(stats.t.ppf(1 - false_alarm_rate, freedom)))
    # A map's maximum lies above its score by the same factor as on the held-out maps.
    peaks = [math.log(max(value, LOWEST**2)) for value in held_out_maps.flatten(1).amax(dim=1).tolist()]
    above = math.exp(sum(peaks) / len(peaks) - mean)
    return Calibration(max(LOWEST, score_threshold * above), max(LOWEST, score_threshold), SHARPNESS / sd)
