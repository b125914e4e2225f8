"""The paper's three numbers: image-AUROC, pixel-AUROC and the accuracy of the answers (AnomalyGPT section 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def image_auroc(scores: Sequence[float], is_anomalous: Sequence[bool]) -> float | None:
    """Area under the ROC curve over photos.

    Args:
        scores: one a photo, the higher the more anomalous: the map's maximum.
        is_anomalous: the truth, one a photo.

    Returns:
        0..1, or None where the photos are all good or all anomalous.

    Raises:
        ValueError: not as many scores as truths, or a score is no number.
    """
    return _auroc(np.asarray(scores, dtype=np.float64), np.asarray(is_anomalous, dtype=bool))


def pixel_auroc(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve over all pixels of all photos together, ties counted half.

    It is exact. Sorting needs about 60 bytes a pixel for a moment: 170 photos of 224 x 224 take 0.5 GB.

    Args:
        maps: (N, H, W) float32, the higher the more anomalous.
        masks: (N, H, W) bool, True where anomalous.

    Returns:
        0..1, or None where no pixel, or every one, is anomalous.

    Raises:
        ValueError: maps and masks differ in shape, or a map holds something else than numbers.
    """
    if maps.shape != masks.shape:
        raise ValueError(f"maps are {maps.shape} and masks {masks.shape}; expected the same shape")
    return _auroc(maps.ravel(), masks.ravel())


def answer_accuracy(said: Sequence[bool | None], is_anomalous: Sequence[bool]) -> float | None:
    """Share of photos whose answer says the truth.

    Args:
        said: what each answer says, as ``parse_verdict`` reads it; None, neither yes nor no, counts as wrong.
        is_anomalous: the truth, one a photo.

    Returns:
        0..1, or None where there is no photo.

    Raises:
        ValueError: not as many answers as truths.
    """
    right = [verdict == truth for verdict, truth in zip(said, is_anomalous, strict=True)]
    return sum(right) / len(right) if right else None


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are, None where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _auroc(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if truth.all() or not truth.any():
        return None
    return float(roc_auc_score(truth, scores))
