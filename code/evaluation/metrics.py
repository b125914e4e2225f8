"""Metrics over photos: of scores by scikit-learn, of verdicts and positions by counting (AnomalyGPT section 4)."""

from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev

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
    from sklearn.metrics import roc_auc_score

    truth = _both_kinds(is_anomalous)
    return None if truth is None else float(roc_auc_score(truth, scores))


def image_ap(scores: Sequence[float], is_anomalous: Sequence[bool]) -> float | None:
    """Average precision over photos; arguments, result and errors as of :func:`image_auroc`."""
    from sklearn.metrics import average_precision_score

    truth = _both_kinds(is_anomalous)
    return None if truth is None else float(average_precision_score(truth, scores))


def image_f1_max(scores: Sequence[float], is_anomalous: Sequence[bool]) -> float | None:
    """The best F1 over photos at any threshold; arguments, result and errors as of :func:`image_auroc`."""
    from sklearn.metrics import precision_recall_curve

    truth = _both_kinds(is_anomalous)
    if truth is None:
        return None
    precision, recall, _ = precision_recall_curve(truth, scores)
    both = precision + recall
    return float((2 * precision * recall / np.where(both > 0, both, 1)).max())


def _both_kinds(is_anomalous: Sequence[bool]) -> NDArray[np.bool_] | None:
    truth = np.asarray(is_anomalous, dtype=bool)
    return None if truth.all() or not truth.any() else truth


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
    return share(verdict == truth for verdict, truth in zip(said, is_anomalous, strict=True))


def hindsight_accuracy(scores: Sequence[float], is_anomalous: Sequence[bool]) -> float | None:
    """The best share of right verdicts that any threshold on the scores gives; None where there is no photo."""
    pairs = sorted(zip(scores, is_anomalous, strict=True), reverse=True)
    # The threshold falls past one score after the other; equal scores are passed together.
    right = best = sum(not truth for _, truth in pairs)
    for number, (score, truth) in enumerate(pairs, start=1):
        right += 1 if truth else -1
        if number == len(pairs) or pairs[number][0] != score:
            best = max(best, right)
    return best / len(pairs) if pairs else None


def common_hindsight_accuracy(classes: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float | None:
    """The best mean over classes of their shares of right verdicts that one threshold on all scores gives.

    Args:
        classes: scores and truths of each.

    Returns:
        0..1, or None where a class has no photo, or there is no class.
    """
    if not classes or not all(scores for scores, _ in classes):
        return None
    # A photo is called anomalous above the threshold: from below all scores to the highest of them.
    thresholds = np.unique(np.concatenate([[-np.inf], *(scores for scores, _ in classes)]))
    return float(np.mean([_right_above(thresholds, scores, truth) for scores, truth in classes], axis=0).max())


def _right_above(
    thresholds: NDArray[np.float64], scores: Sequence[float], is_anomalous: Sequence[bool]
) -> NDArray[np.float64]:
    """The share of right verdicts by each threshold."""
    found, truth = np.asarray(scores), np.asarray(is_anomalous, dtype=bool)
    good = np.searchsorted(np.sort(found[~truth]), thresholds, side="right")
    missed = np.searchsorted(np.sort(found[truth]), thresholds, side="right")
    return np.asarray((good + truth.sum() - missed) / len(found))


def recall(said: Sequence[bool], is_anomalous: Sequence[bool]) -> float | None:
    """Share of anomalous photos that are said to be; None where there is none."""
    return share(verdict for verdict, truth in zip(said, is_anomalous, strict=True) if truth)


def false_alarm_rate(said: Sequence[bool], is_anomalous: Sequence[bool]) -> float | None:
    """Share of good photos that are said to be anomalous; None where there is none."""
    return share(verdict for verdict, truth in zip(said, is_anomalous, strict=True) if not truth)


def share(flags: Iterable[bool]) -> float | None:
    """The share that is true, None of nothing."""
    counted = [bool(flag) for flag in flags]
    return sum(counted) / len(counted) if counted else None


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that there are, None where there is none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def spread_known(values: Sequence[float | None]) -> float | None:
    """The standard deviation of the values that there are (divided by their number), None for fewer than two."""
    known = [value for value in values if value is not None]
    return pstdev(known) if len(known) > 1 else None
