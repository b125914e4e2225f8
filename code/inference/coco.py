"""Regions as a COCO data set, which FiftyOne, Label Studio and CVAT import."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.datasets.regions import label_regions
from anomalygpt.inference.regions import PEAK_FRACTION
from anomalygpt.inference.results import ImageResult

TOLERANCE = 0.4  # pixels, by which a polygon may be off a region's edge
CATEGORY = {"id": 1, "name": "defect"}


def coco_annotations(image: ImageResult) -> list[dict[str, Any]]:
    """A photo's regions, each with the photo's probability, where it has one, as its score."""
    probability, annotations = image.findings.shown_probability, []
    score = {} if probability is None else {"score": round(probability, 6)}
    for region in image.regions:
        left, top, right, bottom = region.box
        shape = {"bbox": [left, top, right - left, bottom - top], "segmentation": [polygon(image, region)]}
        area = round(region.area * image.map.size)
        annotations.append({"category_id": CATEGORY["id"], "iscrowd": 0, **shape, "area": area, **score})
    return annotations


def polygon(image: ImageResult, region: RegionFinding) -> list[float]:
    """x, y, x, y … in pixels around one of a photo's regions, without its holes."""
    from skimage.measure import approximate_polygon, find_contours  # here: imports scipy.signal, which takes its time

    left, top, right, bottom = region.box
    # A region that is nowhere above the threshold was found at a lower one.
    level = image.threshold if region.peak > image.threshold else PEAK_FRACTION * float(image.map.max())
    labels, _ = label_regions(image.map[top:bottom, left:right] > level)  # others may reach into its box
    sizes = np.bincount(labels.flat)[1:]
    inside = labels == 1 + np.abs(sizes - region.area * image.map.size).argmin()
    padded = np.pad(ndimage.binary_fill_holes(inside), 1).astype(float)
    contour = max(find_contours(padded, 0.5, fully_connected="high"), key=len)
    # The pixel (0, 0) is at (1, 1) of the padded flags, and reaches from 0 to 1. The last point is the first.
    points = approximate_polygon(contour, TOLERANCE)[:-1, ::-1] - 0.5 + (left, top)
    return [round(float(value), 2) for value in points.flat]


def coco_dataset(photos: Mapping[Path, tuple[tuple[int, int], Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """A data set of photos, with the (width, height) and the annotations of each.

    Their names are relative to the folder that holds them all.
    """
    root = os.path.commonpath([path.absolute().parent for path in photos]) if photos else ""
    images, annotations = [], list[dict[str, Any]]()
    for number, (path, ((width, height), found)) in enumerate(photos.items(), start=1):
        name = path.absolute().relative_to(root).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [{"id": len(annotations) + 1 + n, "image_id": number, **each} for n, each in enumerate(found)]
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}
