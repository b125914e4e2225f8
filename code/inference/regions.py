"""Connected regions of an anomaly map above its threshold."""

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from anomalygpt.datasets.findings import Form, RegionFinding
from anomalygpt.datasets.regions import label_regions, position_name

Map = NDArray[np.float32]

SMALLEST_REGION = 0.0005  # of the photo's area; smaller ones come from the map's interpolation
ELONGATED = 3.0  # length over width, by the second moments, from which a region is elongated
SCATTERED = 0.4  # a region that fills less of its convex hull is scattered
PEAK_FRACTION = 0.8  # of the map's maximum: bounds the region of a defect whose map is nowhere above the threshold


def find_regions(anomaly_map: Map, threshold: float, smallest: float = SMALLEST_REGION) -> tuple[RegionFinding, ...]:
    """The regions of a map (height, width) above a threshold, largest first, without those below ``smallest``."""
    height, width = anomaly_map.shape
    labels, _ = label_regions(anomaly_map > threshold)
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        area = float(inside.sum()) / (height * width)
        if area >= smallest:
            box = (columns.start, rows.start, columns.stop, rows.stop)
            peak = float(anomaly_map[rows, columns][inside].max())
            place = position_name(box, (width, height))
            regions.append(RegionFinding(place, box, area, peak, region_form(inside)))
    return tuple(sorted(regions, key=lambda region: -region.area))


def regions_of_verdict(anomaly_map: Map, threshold: float, is_anomalous: bool) -> tuple[RegionFinding, ...]:
    """A good photo has none; a defective one without any above the threshold has the one around the map's maximum."""
    if not is_anomalous:
        return ()
    lower = PEAK_FRACTION * float(anomaly_map.max())
    return find_regions(anomaly_map, threshold) or find_regions(anomaly_map, lower, smallest=0.0)[:1]


def region_form(inside: NDArray[np.bool_]) -> Form:
    """The rough shape of a region, the True pixels of (H, W) flags."""
    rows, columns = np.nonzero(inside)
    points = np.stack([columns, rows], axis=1).astype(np.float32)
    if len(points) < 3:
        return "compact"
    # The hull needs the ends of rows alone. Pixels have an extent.
    filled = np.flatnonzero(inside.any(axis=1))
    ends = inside[filled].argmax(axis=1), inside.shape[1] - inside[filled, ::-1].argmax(axis=1)
    corners = np.concatenate([np.stack([end, filled + below], axis=1) for end in ends for below in (0, 1)])
    if len(points) / cv2.contourArea(cv2.convexHull(corners.astype(np.float32))) < SCATTERED:
        return "scattered"
    spread = np.cov(points.T) + np.eye(2) / 12  # a pixel's own variance
    width, length = np.sqrt(np.linalg.eigvalsh(spread))
    return "elongated" if length / width >= ELONGATED else "compact"
