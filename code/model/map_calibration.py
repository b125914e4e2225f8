"""The anomaly map in units of its threshold: what the prompt learner may be shown, and what pictures are painted by."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

TINY = 1e-6  # a threshold of zero marks whatever lies above it

Values = TypeVar("Values", Tensor, NDArray[np.float32])


def calibrate_map(anomaly_map: Values, threshold: float) -> Values:
    """A map of any shape -> the same shape in 0..1: 0.5 where it meets the threshold, 1 at twice that.

    Never scaled per image: a value means the same for every photo, and for every part and set of references.
    """
    return (anomaly_map / (2 * max(threshold, TINY))).clip(0, 1)  # type: ignore[return-value]
