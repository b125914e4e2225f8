"""Metrics over photos, and over all pixels of a class's test photos together (AnomalyGPT section 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.regions import label_regions

PRO_LIMIT = 0.3  # the false-positive rate up to which AUPRO integrates (Bergmann et al., IJCV 2021)
# Pixel metrics are exact up to this many distinct scores (240 maps of 224 x 224), beyond it neighbours count as one.
MAX_SCORES = 12_000_000


def image_metrics(scores: Sequence[float], is_anomalous: Sequence[bool]) -> dict[str, float]:
    """AUROC, AP, best F1 and accuracy, 0..1; empty where photos are of one kind. DatasetError: scores aren't finite."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    if not np.isfinite(scores).all():
        raise DatasetError("scores are not finite numbers; expected finite ones: the weights may be damaged")
    if len(set(is_anomalous)) < 2:
        return {}
    precision, recall, _ = precision_recall_curve(is_anomalous, scores)
    (false, true, _), bad = roc_curve(is_anomalous, scores), np.mean(is_anomalous)
    return {
        "image_auroc": float(roc_auc_score(is_anomalous, scores)),
        "image_ap": float(average_precision_score(is_anomalous, scores)),
        "image_f1_max": float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()),
        "hindsight_accuracy": float((bad * true + (1 - bad) * (1 - false)).max()),
    }


class PixelCounts:
    """Counts, by score, of the pixels of all maps of a class."""

    def __init__(self) -> None:
        self.regions = self.photos = 0
        # (N,) distinct scores, ascending; and (3, N): normal and defective pixels with each, and fractions of regions.
        self._parts: list[tuple[NDArray[Any], NDArray[np.float64]]] = []

    def add(self, scores: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        """Counts a photo's (H, W) scores by its mask and the connected regions of that."""
        labels, count = label_regions(mask)
        distinct, places = np.unique(scores, return_inverse=True)
        places = places.reshape(scores.shape)
        normal, defective = (np.bincount(places[flags], minlength=len(distinct)) for flags in (~mask, mask))
        overlap = np.bincount(places[mask], 1 / np.bincount(labels.flat)[labels[mask]], minlength=len(distinct))
        self._parts.append((distinct, np.stack([normal, defective, overlap])))
        self.regions += count
        self.photos += 1
        if sum(len(part) for part, _ in self._parts) > MAX_SCORES:
            distinct, counts = self._merged()
            while len(distinct) > MAX_SCORES // 2:
                counts = np.add.reduceat(counts, np.arange(0, len(distinct), 2), axis=1)
                distinct = distinct[::2]
            self._parts = [(distinct, counts)]

    def _merged(self) -> tuple[NDArray[Any], NDArray[np.float64]]:
        distinct, places = np.unique(np.concatenate([scores for scores, _ in self._parts]), return_inverse=True)
        counts = np.concatenate([counts for _, counts in self._parts], axis=1)
        return distinct, np.stack([np.bincount(places, row) for row in counts])

    def metrics(self) -> dict[str, float]:
        """Metrics over all pixels together, 0..1; empty where no pixel, or every one, is anomalous."""
        from sklearn.metrics import auc

        if not self._parts:
            return {}
        normal, defective, overlap = self._merged()[1][:, ::-1]  # from the highest score on
        false, true = (np.append(0, np.cumsum(pixels)) for pixels in (normal, defective))
        if not false[-1] or not true[-1]:
            return {}
        rate = false / false[-1]
        found = {
            "pixel_auroc": auc(rate, true / true[-1]),
            "pixel_ap": defective @ (true[1:] / (true[1:] + false[1:])) / true[-1],
            "pixel_f1_max": (2 * true / (true[-1] + true + false)).max(),
        }
        if self.regions:
            share = np.append(0, np.cumsum(overlap)) / self.regions
            cut = int(np.searchsorted(rate, PRO_LIMIT, side="right"))
            limited = np.append(share[:cut], np.interp(PRO_LIMIT, rate, share))
            found["aupro"] = auc(np.append(rate[:cut], PRO_LIMIT), limited) / PRO_LIMIT
        return {key: float(value) for key, value in found.items()}
