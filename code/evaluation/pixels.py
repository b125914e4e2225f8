"""Pixel metrics in fixed memory: scores are counted in bins, and a bound says how far the bins can be from exact."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.regions import label_regions

PRO_LIMIT = 0.3  # the false-positive rate up to which AUPRO integrates (Bergmann et al., IJCV 2021)

# A bin is the exponent and the first bits of the mantissa of a float32: neighbours differ by 1/8192 of their value,
# whatever range a map has, so that one pass does and any two counts can be added. Probabilities of a text map reach
# down to the smallest number that a float32 holds in full, and where they do, that is most pixels.
MANTISSA_BITS = 13
SMALLEST, LARGEST = -126, 16  # powers of two; smaller values share the bin at zero, larger ones the last bin
_SHIFT = 23 - MANTISSA_BITS
_FIRST = (127 + SMALLEST) << MANTISSA_BITS
# The first bin is for everything below zero, where distances and probabilities come by rounding alone.
BINS = 1 + ((LARGEST - SMALLEST) << MANTISSA_BITS)

# Regions weigh alike, so a pixel weighs 1 / area of its region; in whole numbers, sums come out the same in any order.
UNIT = 1 << 42


def bins_of(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bin of each score, 0..BINS - 1, never falling where scores rise; any shape.

    Raises:
        ValueError: a score is no finite number.
    """
    values = np.ascontiguousarray(scores, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a map holds something else than finite numbers")
    place = np.clip((values.view(np.int32) >> _SHIFT) - _FIRST, 0, BINS - 2)
    return np.where(values >= 0, 1 + place, 0).astype(np.int32)


class Region(NamedTuple):
    """A connected defect: its pixels (H, W) bool, and how many of them count as all of it (LOCO), its area for None."""

    pixels: NDArray[np.bool_]
    needed: float | None = None


@dataclass
class PixelCounts:
    """What is kept of all maps of a class: three counts a bin, 28 MB, whatever the number of photos.

    Attributes:
        sound: (BINS,) int64, pixels outside the defects.
        defective: (BINS,) int64, pixels inside.
        overlap: (BINS,) int64, for each region its pixels' shares of it, in units of 2^-42.
        regions: how many there were.
        photos: how many maps were added.
    """

    sound: NDArray[np.int64]
    defective: NDArray[np.int64]
    overlap: NDArray[np.int64]
    regions: int = 0
    photos: int = 0

    @classmethod
    def empty(cls) -> "PixelCounts":
        """Nothing counted yet."""
        return cls(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))

    def add(
        self, scores: NDArray[np.float32], mask: NDArray[np.bool_], regions: Sequence[Region] | None = None
    ) -> None:
        """Counts one photo.

        Args:
            scores: (H, W), the higher the more anomalous.
            mask: (H, W), True where anomalous.
            regions: the mask's defects; by default its connected parts, corners touching.

        Raises:
            ValueError: the shapes differ, or a score is no finite number.
        """
        if scores.shape != mask.shape:
            raise ValueError(f"the map is {scores.shape} and the mask {mask.shape}; expected the same shape")
        bins = bins_of(scores)
        found = connected(mask) if regions is None else regions
        self.sound += np.bincount(bins[~mask], minlength=BINS)
        self.defective += np.bincount(bins[mask], minlength=BINS)
        for region in found:
            self._add_region(bins[region.pixels], region.needed)
        self.photos += 1

    def _add_region(self, bins: NDArray[np.int32], needed: float | None) -> None:
        places, counts = np.unique(bins, return_counts=True)
        if needed is None or needed >= counts.sum():
            self.overlap[places] += counts * (UNIT // int(counts.sum()))
        else:
            # Saturated overlap: the highest `needed` pixels are all of it, those after them add nothing.
            found = np.minimum(np.cumsum(counts[::-1]), max(needed, 1.0)) / max(needed, 1.0)
            reached = np.append(0, np.rint(found * UNIT).astype(np.int64))
            self.overlap[places[::-1]] += reached[1:] - reached[:-1]
        self.regions += 1

    def merge(self, other: "PixelCounts") -> None:
        """Adds another's counts, as if all photos had been added here."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def connected(mask: NDArray[np.bool_]) -> list[Region]:
    """The connected parts of a mask (H, W); pixels that touch at a corner are connected."""

    labels, _ = label_regions(mask)
    return [Region(labels == number) for number in range(1, int(labels.max(initial=0)) + 1)]


class Bounded(NamedTuple):
    """A metric from bins, 0..1, and how far from it the exact value may lie."""

    value: float
    error: float


@dataclass(frozen=True)
class PixelCurves:
    """Rates over falling thresholds, one a bin that holds anything, 0 first; all (N,) float64.

    Attributes:
        false_rate: share of sound pixels at or above the threshold.
        true_rate: share of defective ones.
        overlap: mean share of a region; NaN where no region was counted.
    """

    sound: NDArray[np.int64]
    defective: NDArray[np.int64]
    false_rate: NDArray[np.float64]
    true_rate: NDArray[np.float64]
    overlap: NDArray[np.float64]


def curves(counts: PixelCounts) -> PixelCurves | None:
    """The curves, None where no pixel, or every one, is anomalous."""
    used = np.flatnonzero(counts.sound + counts.defective)[::-1]
    sound, defective = counts.sound[used], counts.defective[used]
    if not sound.any() or not defective.any():
        return None
    return PixelCurves(sound, defective, *map(_rate, (sound, defective, counts.overlap[used])))


def _rate(counted: NDArray[np.int64]) -> NDArray[np.float64]:
    summed = np.cumsum(counted)
    return np.append(0.0, summed / summed[-1]) if summed[-1] else np.full(len(counted) + 1, np.nan)


def auroc(found: PixelCurves) -> Bounded:
    """Area under the ROC curve over all pixels together, ties counted half."""
    rise, step = np.diff(found.true_rate), np.diff(found.false_rate)
    area = _area(found.true_rate, found.false_rate)
    # Within a bin the exact curve may take any way up and right.
    return Bounded(area, float((rise * step).sum() / 2))


def average_precision(found: PixelCurves) -> Bounded:
    """Area under the precision-recall curve, as a sum over thresholds of precision times gained recall."""
    true, false = np.cumsum(found.defective), np.cumsum(found.sound)
    gained = found.defective / true[-1]
    before = true - found.defective, false - found.sound
    highest = true / np.maximum(true + before[1], 1)
    lowest = (before[0] + 1) / (before[0] + 1 + false)
    spread = gained * np.maximum(highest - lowest, 0)
    return Bounded(float((gained * true / (true + false)).sum()), float(spread.sum()))


def f1_max(found: PixelCurves) -> Bounded:
    """The best F1 at any threshold."""
    true, false = np.cumsum(found.defective), np.cumsum(found.sound)
    best = float((2 * true / (true[-1] + true + false)).max())
    before = false - found.sound
    ideal = float((2 * true / (true[-1] + true + before)).max())
    return Bounded(best, ideal - best)


def aupro(found: PixelCurves, limit: float = PRO_LIMIT) -> Bounded | None:
    """Area under the per-region overlap up to a false-positive rate, divided by it; None without regions."""
    if np.isnan(found.overlap).any():
        return None
    rate, overlap = found.false_rate, found.overlap
    cut = int(np.searchsorted(rate, limit, side="right"))
    rate = np.append(rate[:cut], limit)
    ends = np.append(overlap[:cut], np.interp(limit, found.false_rate, overlap))
    rise = np.diff(np.append(overlap[:cut], overlap[min(cut, len(overlap) - 1)]))
    width = np.diff(rate)
    error = (rise[:-1] * width[:-1]).sum() / 2 + rise[-1] * width[-1]
    return Bounded(_area(ends, rate) / limit, float(error / limit))


def _area(heights: NDArray[np.float64], places: NDArray[np.float64]) -> float:
    """By trapezoids."""
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(places)).sum())
