"""From an image's result to its findings: the record that answers, badge, table and JSON are made of."""

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.findings import Findings, Form, RegionFinding
from anomalygpt.datasets.regions import position_name
from anomalygpt.inference.predictor import ImageResult
from anomalygpt.inference.regions import Region, find_regions

ELONGATED = 3.0  # length over width, by the second moments, from which a region is elongated
SCATTERED = 0.4  # a region that fills less of its convex hull is scattered
PEAK_FRACTION = 0.8  # of the map's maximum: bounds the region of a defect whose map is nowhere above the threshold


def findings_of(image: ImageResult, references: int) -> Findings:
    """What is known about a photo.

    A photo that is called good has no regions; one that is called defective has at least one: where no region of the
    map is above its threshold, the region around the map's maximum.

    Args:
        references: how many reference photos the map comes from; 0: from the text features.
    """
    regions, threshold = image.regions, image.threshold
    if not image.is_anomalous:
        regions = ()
    elif not regions:
        threshold = PEAK_FRACTION * float(image.map.max())
        regions = find_regions(image.map, threshold)[:1] or (_peak(image.map),)
    height, width = image.map.shape
    return Findings(
        status="defective" if image.is_anomalous else "good",
        probability=image.probability,
        regions=tuple(_finding(region, image, threshold) for region in regions),
        class_name=image.class_name,
        references=references,
        image_size=(width, height),
    )


def _finding(region: Region, image: ImageResult, threshold: float) -> RegionFinding:
    left, top, right, bottom = region.box
    form = region_form(image.map[top:bottom, left:right] > threshold)
    peak = region.peak / max(image.threshold, 1e-6)
    return RegionFinding(region.position, region.box, region.area, peak, form)


def _peak(anomaly_map: NDArray[np.float32]) -> Region:
    """The map's maximum as a region of one pixel."""
    row, column = (int(index) for index in np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape))
    box = (column, row, column + 1, row + 1)
    place = position_name(box, (anomaly_map.shape[1], anomaly_map.shape[0]))
    return Region(box, 1 / anomaly_map.size, place, float(anomaly_map.max()))


def region_form(inside: NDArray[np.bool_]) -> Form:
    """The rough shape of a region (H, W)."""
    rows, columns = np.nonzero(inside)
    points = np.stack([columns, rows], axis=1).astype(np.float32)
    if len(points) < 3:
        return "compact"
    corners = np.concatenate([points + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))])  # pixels have an extent
    if len(points) / cv2.contourArea(cv2.convexHull(corners.astype(np.float32))) < SCATTERED:
        return "scattered"
    spread = np.cov(points.T) + np.eye(2) / 12  # a pixel's own variance
    width, length = np.sqrt(np.linalg.eigvalsh(spread))
    return "elongated" if length / width >= ELONGATED else "compact"
