"""The threshold of the image score and of the map: a log-normal predictive interval of a good photo's score.

The logarithm y of a good photo's score is taken for normal, its variance for unknown with a scaled inverse chi-squared
prior. From the scores of n good photos that were held out of the memory bank of K references, with the mean m of their
logarithms and the sum S of squared deviations from it:

    m'  = c_K + w_K (m - h_K)                        what many other parts say of the centre, given m (PartsPrior)
    s^2 = (k s0^2 + S) / (k + n - 1)                 the posterior's scale; the prior s0^2 counts as k photos
    sd  = sqrt(s^2 + e_K^2)                          of a new photo's y about m'; Student-t, k + n - 1 of freedom
    score threshold = exp(m' + t_{1 - f} sd)         exceeded by a good photo at the false-alarm rate f

Without numbers of other parts, by the references alone: m' = m + a log((K - 1) / K), since distances fall as K^-a and a
held-out photo has K - 1 references; e_K^2 = s^2 / n. A single reference gives perturbations of one photo: n = 1, S = 0.

Inspected photos then narrow m' and s^2, and the ones that a person called bad bound the threshold: ``learning``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit
from torch import Tensor

from anomalygpt.config.settings import PartsPrior
from anomalygpt.inference.learning import Belief, Observed, bounded, learned

PRIOR_SD = 0.15  # s0: of the logarithm, between good photos of one part
PRIOR_STRENGTH = 6.0  # k, by the references alone
PARTS_STRENGTH = 30.0  # k, with the numbers of other parts
K_EXPONENT = 0.12  # a
SHARPNESS = 2.0  # of the probability: its log-odds rise by so much per sd
# The least probability of a defect. On parts that the calibration has not seen, so many of the photos whose score is
# far below the threshold have a defect that the map does not show.
NOT_SHOWN = 0.08
LOWEST = 0.05  # the smallest threshold: two equal references have no distance, and all else would be anomalous


@dataclass(frozen=True)
class Calibration:
    """Of maps that come from references."""

    threshold: float  # of pixels; exceeded by the maximum of a good photo's map at the false-alarm rate
    score_threshold: float  # exceeded by a good photo's score at that rate; there the probability is one half
    slope: float  # log-odds per unit of the score's logarithm

    def probability(self, score: float) -> float:
        """That a photo with this image score is anomalous: logistic in the logarithm of the score.

        Below one half it is compressed to ``NOT_SHOWN``..0.5.
        """
        odds = self.slope * math.log(max(score, LOWEST**2) / self.score_threshold)
        probability = 1 / (1 + math.exp(-max(-50.0, min(50.0, odds))))
        return max(probability, NOT_SHOWN + (1 - 2 * NOT_SHOWN) * probability)


@dataclass(frozen=True)
class TextCalibration:
    """Of text maps, which are probabilities themselves: unchanged where the threshold is one half."""

    threshold: float

    @property
    def score_threshold(self) -> float:
        """The same as of pixels."""
        return self.threshold

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
    parts: PartsPrior | None = None,
    scale: float = 1.0,
    observed: Observed | None = None,
) -> Calibration:
    """Calibrates by good photos that the memory bank did not hold.

    Args:
        held_out_scores: image scores of the maps.
        held_out_maps: (n, 1, S, S), see ``References.held_out_maps``.
        false_alarm_rate: fraction of good photos that may be taken for anomalous ones, above 0, below 1.
        references: K, the number of references.
        parts: what is known of other parts, in maps of the same kind. None: by the references alone.
        scale: these scores, relative to those that ``parts`` are of.
        observed: photos that were inspected with these references.
    """
    logs = [math.log(max(value, LOWEST**2)) for value in held_out_scores]
    mean = sum(logs) / len(logs)
    single = references == 1
    count, squares = (1, 0.0) if single else (len(logs), sum((log - mean) ** 2 for log in logs))
    if parts is None:
        center = mean if single else mean + K_EXPONENT * math.log((references - 1) / references)
        freedom = PRIOR_STRENGTH + count - 1
        squares += PRIOR_STRENGTH * PRIOR_SD**2
        error = math.sqrt(squares / freedom / count)
    else:
        usual, held_out, weight, error = parts.at(references)
        center = usual + math.log(scale) + weight * (mean - math.log(scale) - held_out)
        freedom = PARTS_STRENGTH + count - 1
        squares += PARTS_STRENGTH * parts.spread**2
    belief = learned(Belief(center, error, freedom, squares), observed or {}, LOWEST**2)
    highest = belief.centre + belief.sd * float(stdtrit(belief.freedom, 1 - false_alarm_rate))
    score_threshold = math.exp(bounded(highest, belief, observed or {}))
    # A map's maximum lies above its score by the same factor as on the held-out maps.
    peaks = [math.log(max(value, LOWEST**2)) for value in held_out_maps.flatten(1).amax(dim=1).tolist()]
    above = math.exp(sum(peaks) / len(peaks) - mean)
    return Calibration(max(LOWEST, score_threshold * above), max(LOWEST, score_threshold), SHARPNESS / belief.sd)
