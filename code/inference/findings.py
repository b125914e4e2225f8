"""From an image's result to its findings: the record that answers, badge, table and JSON are made of."""

import cv2
import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.findings import Findings, Form, RegionFinding
from anomalygpt.inference.predictor import Look, Region, find_regions

ELONGATED = 3.0  # length over width, by the second moments, from which a region is elongated
SCATTERED = 0.4  # a region that fills less of its convex hull is scattered
PEAK_SHARE = 0.8  # of the map's largest value: the region of a defect whose map is nowhere above the threshold


def findings_of(image: Look, references: int) -> Findings:
    """What is known about a photo.

    A photo that is called good has no regions; one that is called defective has at least one: where no region of the
    map is above its threshold, that around the map's largest value.

    Args:
        references: how many reference photos the map comes from; 0: from the text features.
    """
    regions: tuple[Region, ...] = ()
    threshold = image.threshold
    if image.is_anomalous:
        regions = image.regions
        if not regions:
            threshold = PEAK_SHARE * float(image.map.max())
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


def _finding(region: Region, image: Look, threshold: float) -> RegionFinding:
    left, top, right, bottom = region.box
    inside = image.map[top:bottom, left:right] > threshold
    peak = region.peak / image.threshold if image.threshold else float("inf")
    return RegionFinding(region.position, region.box, region.area, peak, region_form(inside))


def _peak(anomaly_map: NDArray[np.float32]) -> Region:
    """The map's largest value as a region of one pixel."""
    row, column = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    above = np.zeros_like(anomaly_map)
    above[row, column] = 1
    box = (int(column), int(row), int(column) + 1, int(row) + 1)
    from anomalygpt.datasets.dialogue import position_name

    place = position_name(box, (anomaly_map.shape[1], anomaly_map.shape[0]))
    return Region(box, 1 / anomaly_map.size, place, float(anomaly_map.max()))


def region_form(inside: NDArray[np.bool_]) -> Form:
    """The rough shape of a region (H, W)."""
    rows, columns = np.nonzero(inside)
    points = np.stack([columns, rows], axis=1).astype(np.float32)
    if len(points) < 3:
        return "compact"
    corners = np.concatenate([points + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))])  # pixels have an extent
    if len(points) / cv2.contourArea(cv2.convexHull(corners)) < SCATTERED:
        return "scattered"
    spread = np.cov(points.T) + np.eye(2) / 12  # a pixel's own variance
    width, length = np.sqrt(np.linalg.eigvalsh(spread))
    return "elongated" if length / width >= ELONGATED else "compact"
