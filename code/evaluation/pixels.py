"""Pixel metrics over all maps of a class: exact, or with a bound on the error where a class has too many pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.regions import label_regions

PRO_LIMIT = 0.3  # the false-positive rate up to which AUPRO integrates (Bergmann et al., IJCV 2021)

# Scores are kept as they are until there are this many (240 maps of 224 x 224, about 150 MB). From then on the last
# ROUNDED_BITS bits of each are dropped: 13 bits of the mantissa are left, and at most 2^22 distinct scores.
MAX_SCORES = 12_000_000
ROUNDED_BITS = 10

Counts = tuple[NDArray[np.uint32], NDArray[np.float64]]  # (N,) distinct scores, ascending, and (C, N) counts of each
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # x and y, (N,) each


class Region(NamedTuple):
    """A marked defect: its pixels, (H, W) bool, and how many of them count as all of it (LOCO); None for its area."""

    pixels: NDArray[np.bool_]
    needed: float | None = None


def ordered_keys(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Scores of any sign and size as integers in the same order, equal where the scores are; any shape.

    Raises:
        ValueError: a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise ValueError("a map holds something else than finite numbers")
    bits = (np.ascontiguousarray(scores, dtype=np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


class PixelCounts:
    """The pixels of all maps of a class, counted by score.

    Args:
        max_scores: how many are kept before they are rounded.

    Attributes:
        regions: how many defects were added.
        photos: how many maps were added.
    """

    def __init__(self, max_scores: int = MAX_SCORES) -> None:
        self.regions = self.photos = 0
        self.max_scores = max_scores
        self.is_rounded = False
        self._normal: list[Counts] = []  # pixels
        self._defective: list[Counts] = []  # pixels, and the sum over regions of their shares of a region

    def add(
        self, scores: NDArray[np.float32], mask: NDArray[np.bool_], regions: Sequence[Region] | None = None
    ) -> None:
        """Counts one photo.

        Args:
            scores: (H, W), the higher the more anomalous.
            mask: (H, W), True where anomalous.
            regions: the defects in the mask; by default its connected regions.

        Raises:
            ValueError: the shapes differ, or a score is not a finite number.
        """
        if scores.shape != mask.shape:
            raise ValueError(f"the map is {scores.shape} and the mask {mask.shape}; expected the same shape")
        if regions is None:
            labels, count = label_regions(mask)
            regions = [Region(labels == number) for number in range(1, count + 1)]
        keys = ordered_keys(scores)
        normal, pixels = np.unique(keys[~mask], return_counts=True)
        self._normal.append((normal, pixels[None].astype(np.float64)))
        defective, pixels = np.unique(keys[mask], return_counts=True)
        overlap = np.zeros(len(defective))
        for region in regions:
            found = np.bincount(np.searchsorted(defective, keys[region.pixels]), minlength=len(defective))
            needed = max(found.sum() if region.needed is None else min(region.needed, found.sum()), 1)
            # The highest `needed` pixels are all of the region, those below them add nothing (saturated overlap).
            overlap[::-1] += np.diff(np.minimum(np.cumsum(found[::-1]), needed), prepend=0) / needed
        self._defective.append((defective, np.stack([pixels, overlap])))
        self.regions += len(regions)
        self.photos += 1
        if sum(len(keys) for keys, _ in self._normal + self._defective) > self.max_scores:
            self.is_rounded = True
            self._normal, self._defective = [self._merged(self._normal)], [self._merged(self._defective)]

    def _merged(self, parts: Sequence[Counts]) -> Counts:
        keys = np.concatenate([keys for keys, _ in parts])
        if self.is_rounded:
            keys = keys >> ROUNDED_BITS << ROUNDED_BITS
        keys, place = np.unique(keys, return_inverse=True)
        counts = np.concatenate([counts for _, counts in parts], axis=1)
        return keys, np.stack([np.bincount(place, row, minlength=len(keys)) for row in counts])

    def metrics(self) -> tuple[dict[str, tuple[float, float]], dict[str, Curve]]:
        """Metrics and curves over all pixels together; none where no pixel, or every one, is anomalous.

        Returns:
            ``pixel_auroc``, ``pixel_ap`` (sum over thresholds of precision times gained recall), ``pixel_f1_max`` and,
            where there are regions, ``aupro``: 0..1, each with how far from it the exact value may lie. The curves
            ``pixel_roc`` and ``pro`` over the false-positive rate.
        """
        from sklearn.metrics import auc

        if not any(len(keys) for keys, _ in self._normal) or not any(len(keys) for keys, _ in self._defective):
            return {}, {}
        # Thresholds are the defective pixels' scores, from the highest on: between two of them the recall is the same.
        keys, (gained, overlap) = (array[..., ::-1] for array in self._merged(self._defective))
        normal, (pixels,) = self._merged(self._normal)
        below = np.append(0.0, np.cumsum(pixels))
        above = below[-1] - below[np.searchsorted(normal, keys, side="right")]  # false positives above a threshold
        false = below[-1] - below[np.searchsorted(normal, keys, side="left")]  # and with those that are equal
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
        found = {
            "pixel_auroc": (auc(*curves["pixel_roc"]), gained @ (false - above) / true[-1] / below[-1] / 2),
            "pixel_ap": (
                gained @ precision / true[-1],
                gained @ np.maximum(best_precision - worst_precision, 0) / true[-1],
            ),
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
