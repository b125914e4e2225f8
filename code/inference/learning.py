"""What inspected photos add to the calibration: those that a person called good or bad, and those without a label.

The centre m of a part's log scores is known from references and other parts with a standard deviation e, the variance
s^2 of one photo's with f degrees of freedom. Photos of weight w, with weighted mean g and squares S about it, give

    1 / e'^2 = 1 / e^2 + sum(w) / s^2        m' = e'^2 (m / e^2 + sum(w) g / s^2)        f' = f + sum(w)
    s'^2 = (f s^2 + S) / f'

A photo that was called good has weight 1. One without a label has the probability that it belongs to the good mode of
a mixture, of which defective photos lie above the centre as they do on other parts (expectation maximisation).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# On ten parts, log scores of defective photos lie so far above the centre, with this standard deviation.
DEFECTIVE_ABOVE, DEFECTIVE_SD = 0.45, 0.26
GOOD_BEFORE, DEFECTIVE_BEFORE = 7.0, 3.0  # photos that the mixture's shares are worth before any is seen
ROUNDS = 30  # of expectation maximisation
MOST_UNLABELLED = 200  # the latest ones count: conditions change
LOWEST_SDS = 3.0  # a good photo counts as at most so far below the centre: it may be one of the references
# The threshold is at most this quantile of the bad photos' scores, so that one wrong label of many does not decide it,
# but not below the centre by less than so many standard deviations.
BAD_QUANTILE, BOUND_SDS = 0.2, 0.5


# The score of an inspected photo -> whether a person called it good; None: nobody did.
Observed = Mapping[float, bool | None]


@dataclass(frozen=True)
class Belief:
    """What is known of the logarithm of a good photo's score."""

    centre: float
    error: float  # standard deviation of the centre
    freedom: float  # degrees of freedom of the variance
    squares: float  # sum of squared deviations that these are worth

    @property
    def variance(self) -> float:
        """Of one photo's about the centre."""
        return self.squares / self.freedom

    @property
    def sd(self) -> float:
        """Of a new photo's."""
        return math.sqrt(self.variance + self.error**2)

    def after(self, logs: NDArray[np.float64], weights: NDArray[np.float64]) -> "Belief":
        """The belief after photos (N,) with these weights."""
        total = float(weights.sum())
        if not total:
            return self
        mean = float(weights @ logs) / total
        precision = 1 / self.error**2 + total / self.variance
        centre = (self.centre / self.error**2 + total * mean / self.variance) / precision
        squares = self.squares + float(weights @ (logs - mean) ** 2)
        return Belief(centre, precision**-0.5, self.freedom + total, squares)

    def after_unlabelled(self, logs: NDArray[np.float64]) -> "Belief":
        """The belief after photos (N,) of which any may be defective."""
        belief, share = self, GOOD_BEFORE / (GOOD_BEFORE + DEFECTIVE_BEFORE)
        for _ in range(ROUNDS if len(logs) else 0):
            good = share * _density(logs, belief.centre, belief.sd)
            defective = (1 - share) * _density(logs, belief.centre + DEFECTIVE_ABOVE, DEFECTIVE_SD)
            weights = good / (good + defective)
            share = (weights.sum() + GOOD_BEFORE) / (len(logs) + GOOD_BEFORE + DEFECTIVE_BEFORE)
            belief = self.after(logs, weights)
        return belief


def _density(values: NDArray[np.float64], mean: float, sd: float) -> NDArray[np.float64]:
    """Of the normal distribution, but for a constant factor."""
    return np.exp(-0.5 * ((values - mean) / sd) ** 2) / sd


def learned(belief: Belief, observed: Observed, lowest: float) -> Belief:
    """The belief after inspected photos, labelled or not; scores count as at least ``lowest``."""
    floor = max(math.log(lowest), belief.centre - LOWEST_SDS * belief.sd)
    good, unlabelled = (
        np.array([max(floor, math.log(max(score, lowest))) for score, is_good in observed.items() if is_good is label])
        for label in (True, None)
    )
    return belief.after(good, np.ones(len(good))).after_unlabelled(unlabelled)


def bounded(threshold: float, belief: Belief, observed: Observed) -> float:
    """A threshold of the log score, lowered to where it finds most of the photos that were called bad."""
    bad = [score for score, is_good in observed.items() if is_good is False]
    if not bad:
        return threshold
    lowest = math.exp(belief.centre + BOUND_SDS * belief.sd)
    return min(threshold, math.log(max(float(np.quantile(bad, BAD_QUANTILE)), lowest)))
