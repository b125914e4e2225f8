"""Metrics over photos: of scores by scikit-learn, of verdicts and positions by counting (AnomalyGPT section 4)."""

from collections.abc import Iterable, Sequence

import numpy as np


def image_metrics(scores: Sequence[float], is_anomalous: Sequence[bool]) -> dict[str, float]:
    """Metrics over photos.

    Args:
        scores: one per photo, the higher the more anomalous.
        is_anomalous: the ground truth, one per photo.

    Returns:
        ``image_auroc``, ``image_ap`` and ``image_f1_max`` (the best F1 at any threshold), 0..1; nothing where the
        photos are all good or all anomalous.

    Raises:
        ValueError: scores and ground truth differ in number, or a score is not a number.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    truth = np.asarray(is_anomalous, dtype=bool)
    if truth.all() or not truth.any():
        return {}
    precision, recall, _ = precision_recall_curve(truth, scores)
    both = precision + recall
    return {
        "image_auroc": float(roc_auc_score(truth, scores)),
        "image_ap": float(average_precision_score(truth, scores)),
        "image_f1_max": float((2 * precision * recall / np.where(both > 0, both, 1)).max()),
    }


def accuracy(predicted: Sequence[bool | None], is_anomalous: Sequence[bool]) -> float | None:
    """Fraction of photos whose verdict is right.

    Args:
        predicted: the verdicts; None, neither yes nor no, counts as wrong.
        is_anomalous: the ground truth, one per photo.

    Returns:
        0..1, or None where there is no photo.

    Raises:
        ValueError: verdicts and ground truth differ in number.
    """
    return share(verdict == truth for verdict, truth in zip(predicted, is_anomalous, strict=True))


def recall(predicted: Sequence[bool], is_anomalous: Sequence[bool]) -> float | None:
    """True-positive rate: share of anomalous photos with that verdict; None where there is none."""
    return share(verdict for verdict, truth in zip(predicted, is_anomalous, strict=True) if truth)


def false_alarm_rate(predicted: Sequence[bool], is_anomalous: Sequence[bool]) -> float | None:
    """False-positive rate: share of good photos with the verdict anomalous; None where there is none."""
    return share(verdict for verdict, truth in zip(predicted, is_anomalous, strict=True) if not truth)


def hindsight_accuracy(classes: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float | None:
    """The best accuracy, a mean over classes, that a single threshold on the scores of all classes reaches.

    Args:
        classes: scores and ground truth of each; one class gives the best threshold of its own.

    Returns:
        0..1, or None where a class has no photo, or there is no class.
    """
    if not classes or not all(scores for scores, _ in classes):
        return None
    # A photo is called anomalous above the threshold: from below all scores to the highest of them.
    thresholds = np.unique(np.concatenate([[-np.inf], *(scores for scores, _ in classes)]))
    right = []
    for scores, is_anomalous in classes:
        found, truth = np.asarray(scores), np.asarray(is_anomalous, dtype=bool)
        true_negatives = np.searchsorted(np.sort(found[~truth]), thresholds, side="right")
        false_negatives = np.searchsorted(np.sort(found[truth]), thresholds, side="right")
        right.append((true_negatives + truth.sum() - false_negatives) / len(found))
    return float(np.mean(right, axis=0).max())


def share(flags: Iterable[bool]) -> float | None:
    """The share that is true; None of nothing."""
    counted = [bool(flag) for flag in flags]
    return sum(counted) / len(counted) if counted else None
