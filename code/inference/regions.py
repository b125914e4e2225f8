"""Connected regions of an anomaly map above its threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomalygpt.datasets.regions import label_regions, position_name

SMALLEST_REGION = 0.0005  # of the photo's area; smaller ones come from the map's interpolation


@dataclass(frozen=True)
class Region:
    """A connected part of the map above the threshold.

    Attributes:
        box: (left, top, right, bottom) in the photo's pixels, right and bottom exclusive.
        area: share of the photo's area, 0..1.
        position: its cell of a 3 x 3 grid, as answers name it.
        peak: the map's largest value in it.
    """

    box: tuple[int, int, int, int]
    area: float
    position: str
    peak: float


def find_regions(anomaly_map: NDArray[np.float32], threshold: float) -> tuple[Region, ...]:
    """The regions of a map (height, width) above a threshold, largest first, without the smallest."""
    height, width = anomaly_map.shape
    labels, _ = label_regions(anomaly_map > threshold)
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        area = float(inside.sum()) / (height * width)
        if area >= SMALLEST_REGION:
            box = (columns.start, rows.start, columns.stop, rows.stop)
            peak = float(anomaly_map[rows, columns][inside].max())
            regions.append(Region(box, area, position_name(box, (width, height)), peak))
    return tuple(sorted(regions, key=lambda region: -region.area))
