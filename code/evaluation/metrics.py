"""Metrics over photos, and over all pixels of a class's test photos together (AnomalyGPT section 4)."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.regions import label_regions

PRO_LIMIT = 0.3  # the false-positive rate up to which AUPRO integrates (Bergmann et al., IJCV 2021)

# Pixel metrics are exact up to this many distinct scores (240 maps of 224 x 224, about 150 MB). Beyond it the last
# ROUNDED_BITS bits of each score are dropped: 13 bits of mantissa are left, and at most 2^22 distinct scores. Of scores
# that differ less than they are large, the distance from the one next to 0 is rounded in their place.
MAX_SCORES = 12_000_000
ROUNDED_BITS = 39

Counts = tuple[NDArray[np.floating], NDArray[np.float64]]  # (N,) distinct scores, ascending, and (C, N) counts of each
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y, (N,) each


def require_finite(scores: ArrayLike, what: str) -> None:
    """Raises :class:`DatasetError` where a score is NaN or infinite; ``what`` the scores are of, for the message."""
    wrong = np.count_nonzero(~np.isfinite(np.asarray(scores, dtype=np.float64)))
    if wrong:
        raise DatasetError(f"{wrong} {what} are not finite numbers; expected finite ones: the weights may be damaged")


def image_metrics(scores: Sequence[float], is_anomalous: Sequence[bool]) -> dict[str, float]:
    """``image_auroc``, ``image_ap`` and ``image_f1_max`` (the best F1 at any threshold), 0..1.

    Empty where the photos are all good or all anomalous.

    Raises:
        DatasetError: a score is not a finite number.
        ValueError: scores and ground truth differ in number.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    require_finite(scores, "scores of photos")
    ground_truth = np.asarray(is_anomalous, dtype=bool)
    if ground_truth.all() or not ground_truth.any():
        return {}
    precision, recall, _ = precision_recall_curve(ground_truth, scores)
    both = precision + recall
    return {
        "image_auroc": float(roc_auc_score(ground_truth, scores)),
        "image_ap": float(average_precision_score(ground_truth, scores)),
        "image_f1_max": float((2 * precision * recall / np.where(both > 0, both, 1)).max()),
    }


def accuracy(predicted: Sequence[bool | None], is_anomalous: Sequence[bool]) -> float | None:
    """Fraction of photos with the right verdict, None without photos; a verdict of None counts as wrong."""
    return fraction(verdict == anomalous for verdict, anomalous in zip(predicted, is_anomalous, strict=True))


def verdict_metrics(predicted: Sequence[bool], is_anomalous: Sequence[bool]) -> dict[str, float | None]:
    """``verdict_accuracy``, ``recall`` of anomalous photos, ``false_alarm_rate`` of good ones; None without such."""
    pairs = list(zip(predicted, is_anomalous, strict=True))
    return {
        "verdict_accuracy": accuracy(predicted, is_anomalous),
        "recall": fraction(verdict for verdict, anomalous in pairs if anomalous),
        "false_alarm_rate": fraction(verdict for verdict, anomalous in pairs if not anomalous),
    }


def hindsight_accuracy(classes: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float | None:
    """The best accuracy, averaged over classes, that one score threshold for all classes reaches.

    ``classes`` holds scores and ground truth of each. None where a class has no photo, or there is no class. Raises
    :class:`DatasetError` where a score is not a finite number.
    """
    for class_scores, _ in classes:
        require_finite(class_scores, "scores of photos")
    if not classes or not all(scores for scores, _ in classes):
        return None
    # A photo is called anomalous above the threshold: from below all scores to the highest of them.
    thresholds = np.unique(np.concatenate([[-np.inf], *(scores for scores, _ in classes)]))
    accuracies = []
    for class_scores, is_anomalous in classes:
        scores, anomalous = np.asarray(class_scores), np.asarray(is_anomalous, dtype=bool)
        true_negatives = np.searchsorted(np.sort(scores[~anomalous]), thresholds, side="right")
        false_negatives = np.searchsorted(np.sort(scores[anomalous]), thresholds, side="right")
        accuracies.append((true_negatives + anomalous.sum() - false_negatives) / len(scores))
    return float(np.mean(accuracies, axis=0).max())


def fraction(flags: Iterable[bool]) -> float | None:
    """The fraction that is true; None of an empty sequence."""
    values = [bool(flag) for flag in flags]
    return sum(values) / len(values) if values else None


class Region(NamedTuple):
    """A defect: its pixels, (H, W) bool, and after how many found ones its overlap saturates (LOCO); None: all."""

    pixels: NDArray[np.bool_]
    needed: float | None = None


class PixelCounts:
    """Counts, by score, of the pixels of all maps of a class.

    Args:
        max_scores: how many distinct scores are kept before they are rounded.
    """

    def __init__(self, max_scores: int = MAX_SCORES) -> None:
        self.regions = self.photos = 0
        self.max_scores = max_scores
        self.is_rounded = False
        self._origin = np.float64(0)
        self._normal: list[Counts] = []  # number of pixels
        self._defective: list[Counts] = []  # number of pixels, and the fractions of regions that they are

    def add(self, scores: NDArray[Any], mask: NDArray[np.bool_], regions: Sequence[Region] | None = None) -> None:
        """Counts one photo.

        Args:
            scores: (H, W), the higher the more anomalous.
            mask: (H, W), True where anomalous.
            regions: the defects in the mask; by default its connected regions.

        Raises:
            DatasetError: a score is not a finite number.
            ValueError: the shapes differ.
        """
        if scores.shape != mask.shape:
            raise ValueError(f"the map is {scores.shape} and the mask {mask.shape}; expected the same shape")
        require_finite(scores, "values of a map")
        if regions is None:
            labels, count = label_regions(mask)
            regions = [Region(labels == number) for number in range(1, count + 1)]
        normal, pixels = np.unique(scores[~mask], return_counts=True)
        self._normal.append((normal, pixels[None].astype(np.float64)))
        defective, pixels = np.unique(scores[mask], return_counts=True)
        overlap = np.zeros(len(defective))
        for region in regions:
            found = np.bincount(np.searchsorted(defective, scores[region.pixels]), minlength=len(defective))
            needed = max(found.sum() if region.needed is None else min(region.needed, found.sum()), 1)
            # The highest `needed` pixels are all of the region, those below them add nothing (saturated overlap).
            overlap[::-1] += np.diff(np.minimum(np.cumsum(found[::-1]), needed), prepend=0) / needed
        self._defective.append((defective, np.stack([pixels, overlap])))
        self.regions += len(regions)
        self.photos += 1
        if sum(len(part) for part, _ in self._normal + self._defective) > self.max_scores:
            if not self.is_rounded:
                parts = [part for part, _ in self._normal + self._defective if len(part)]
                low, high = min(part[0] for part in parts), max(part[-1] for part in parts)
                self._origin = np.float64(low if low > 0 and high < 2 * low else high if low > 2 * high else 0)
            self.is_rounded = True
            self._normal, self._defective = [self._merged(self._normal)], [self._merged(self._defective)]

    def _merged(self, parts: Sequence[Counts]) -> Counts:
        scores = np.concatenate([scores for scores, _ in parts])
        if self.is_rounded:
            bits = (scores.astype(np.float64) - self._origin).view(np.uint64)
            scores = (bits >> ROUNDED_BITS << ROUNDED_BITS).view(np.float64) + self._origin
        scores, place = np.unique(scores, return_inverse=True)
        counts = np.concatenate([counts for _, counts in parts], axis=1)
        return scores, np.stack([np.bincount(place, row, minlength=len(scores)) for row in counts])

    def metrics(self) -> tuple[dict[str, tuple[float, float]], dict[str, Curve]]:
        """Metrics and curves over all pixels together; empty where no pixel, or every one, is anomalous.

        Returns:
            ``pixel_auroc``, ``pixel_ap`` (sum over thresholds of precision times gained recall), ``pixel_f1_max`` and,
            where there are regions, ``aupro``: 0..1, each with how far from it the exact value may lie. The curves
            ``pixel_roc`` and ``pro`` over the false-positive rate.
        """
        from sklearn.metrics import auc

        if not any(len(part) for part, _ in self._normal) or not any(len(part) for part, _ in self._defective):
            return {}, {}
        # Thresholds are the defective pixels' scores, from the highest on: between two of them the recall is the same.
        thresholds, (gained, overlap) = (array[..., ::-1] for array in self._merged(self._defective))
        normal, (pixels,) = self._merged(self._normal)
        below = np.append(0.0, np.cumsum(pixels))
        above = below[-1] - below[np.searchsorted(normal, thresholds, side="right")]  # false positives above it
        false = below[-1] - below[np.searchsorted(normal, thresholds, side="left")]  # and with those equal to it
        true = np.cumsum(gained)

        def curve(height: NDArray[np.float64]) -> Curve:
            """From (0, 0) to (1, 1); equal scores are passed on a straight line."""
            x = np.column_stack([above, false]).ravel() / below[-1]
            y = np.column_stack([np.append(0, height[:-1]), height]).ravel()
            return np.concatenate([[0], x, [1]]), np.concatenate([[0], y, [1]])

        curves = {"pixel_roc": curve(true / true[-1])}
        precision, f1 = true / (true + false), 2 * true / (true[-1] + true + false)
        # Pixels whose rounded scores are equal may truly have any order: at best all defective ones come first.
        best_precision, best_f1 = true / np.maximum(true + above, 1), 2 * true / (true[-1] + true + above)
        worst_precision = (true - gained + 1) / (true - gained + 1 + false)
        ap_error = gained @ np.maximum(best_precision - worst_precision, 0) / true[-1]
        found = {
            "pixel_auroc": (auc(*curves["pixel_roc"]), gained @ (false - above) / true[-1] / below[-1] / 2),
            "pixel_ap": (gained @ precision / true[-1], ap_error),
            "pixel_f1_max": (f1.max(), best_f1.max() - f1.max()),
        }
        if self.regions:
            curves["pro"] = curve(np.cumsum(overlap) / self.regions)
            found["aupro"] = _limited_area(*curves["pro"])
        return {key: (float(value), float(error) * self.is_rounded) for key, (value, error) in found.items()}, curves


def _limited_area(rate: NDArray[np.float64], overlap: NDArray[np.float64]) -> tuple[float, float]:
    """The area under a curve up to ``PRO_LIMIT``, divided by it, and a bound on its error."""
    from sklearn.metrics import auc

    cut = int(np.searchsorted(rate, PRO_LIMIT, side="right"))
    x = np.append(rate[:cut], PRO_LIMIT)
    y = np.append(overlap[:cut], np.interp(PRO_LIMIT, rate, overlap))
    rise, width = np.diff(np.append(overlap[:cut], overlap[min(cut, len(overlap) - 1)])), np.diff(x)
    error = rise[:-1] @ width[:-1] / 2 + rise[-1] * width[-1]
    return auc(x, y) / PRO_LIMIT, error / PRO_LIMIT
