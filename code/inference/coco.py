"""Regions as a COCO data set, which FiftyOne, Label Studio and CVAT import."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours

from anomalygpt.datasets.regions import label_regions
from anomalygpt.inference.regions import PEAK_FRACTION
from anomalygpt.inference.results import ImageResult

TOLERANCE = 0.75  # pixels, by which a polygon may be off a region's edge

Photo = tuple[tuple[int, int], list[dict[str, Any]]]  # (width, height), annotations


def coco_annotations(image: ImageResult) -> list[dict[str, Any]]:
    """One annotation for each region of a photo: box, area in pixels, polygon around it, score (the probability)."""
    # A region that is nowhere above the threshold was found at a lower one.
    threshold = min(image.threshold, PEAK_FRACTION * float(image.map.max()))
    outlines = {}
    for level in (image.threshold, threshold):
        labels, _ = label_regions(image.map > level)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            box = (columns.start, rows.start, columns.stop, rows.stop)
            if box not in outlines:
                outlines[box] = labels[rows, columns] == number
    annotations = []
    for region in image.regions:
        left, top, right, bottom = region.box
        annotations.append(
            {
                "category_id": 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": round(region.area * image.map.size),
                "segmentation": [_polygon(outlines[region.box], left, top)],
                "iscrowd": 0,
                "score": round(image.probability, 6),
            }
        )
    return annotations


def _polygon(inside: NDArray[np.bool_], left: int, top: int) -> list[float]:
    """x, y, x, y … around a region, without its holes, given as flags (H, W) of its box at (left, top)."""
    filled = np.pad(ndimage.binary_fill_holes(inside), 1).astype(float)
    contour = max(find_contours(filled, 0.5, fully_connected="high"), key=len)
    simple = approximate_polygon(contour, TOLERANCE)
    points = (simple if len(simple) > 3 else contour)[:-1]  # the last one is the first
    # The pixel (0, 0) is at (1, 1) of the padded flags, and reaches from 0 to 1.
    return [round(float(value), 2) for row, column in points - 0.5 for value in (column + left, row + top)]


def coco_dataset(photos: Mapping[Path, Photo]) -> dict[str, Any]:
    """The annotations of photos; their file names are relative to the folder that holds them all."""
    root = os.path.commonpath([path.absolute().parent for path in photos]) if photos else ""
    images, annotations = [], list[dict[str, Any]]()
    for number, (path, ((width, height), found)) in enumerate(photos.items(), start=1):
        name = path.absolute().relative_to(root).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [{"id": len(annotations) + 1 + n, "image_id": number, **each} for n, each in enumerate(found)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "defect"}]}
