"""Indexes MVTec LOCO AD: logical and structural anomalies, several masks per photo (Bergmann et al., IJCV 2022)."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from anomalygpt.datasets.masks import values_of
from anomalygpt.datasets.records import GOOD, DatasetError, ImageRecord
from anomalygpt.datasets.regions import Region
from anomalygpt.datasets.tree import index_tree

DEFECTS = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"
CLASS_FOLDER = 3  # parents of a mask, <class>/ground_truth/<defect>/<stem>/NNN.png
EXPECTED = (
    f"expected <class>/train/{GOOD}, <class>/validation/{GOOD}, <class>/test/<{GOOD}, {', '.join(DEFECTS)}> "
    "and <class>/ground_truth/<defect>/<stem>/NNN.png"
)


def index_loco(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo, sorted by class, split and path; ``validation/good`` is the split ``validation``.

    A defect photo's masks are those in ``ground_truth/<defect>/<stem>``: ``masks.load_mask`` gives their union,
    :func:`regions` each of them.

    Raises:
        DatasetError: a tree of another shape, or an unknown class or defect.
    """
    records = index_tree(root, classes)
    for record in records:
        if record.defect not in (GOOD, *DEFECTS):
            raise DatasetError(f"{record.image.parents[1]}: unknown folder {record.defect}; {EXPECTED}")
    return records


def can_saturate(records: Sequence[ImageRecord]) -> bool:
    """Whether these are LOCO's photos, with the file of the area that must be found of each kind of defect."""
    folders = {mask.absolute().parents[CLASS_FOLDER] for record in records for mask in record.masks}
    return bool(folders) and all((folder / CONFIG).is_file() for folder in folders)


@cache
def saturation_thresholds(folder: Path) -> dict[int, tuple[float, bool]]:
    """How much must be found of a region, by its value in masks, from ``defects_config.json`` in a class's folder.

    Returns:
        For each value the area, and whether it is a fraction of the region's, 0..1, in place of pixels.

    Raises:
        DatasetError: the file is missing or does not hold what it should.
    """
    path = folder / CONFIG
    try:
        return {
            int(kind["pixel_value"]): (float(kind["saturation_threshold"]), bool(kind["relative_saturation"]))
            for kind in json.loads(path.read_text(encoding="utf-8"))
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of kinds of defect ({error!r})") from error


def regions(record: ImageRecord) -> list[Region]:
    """The marked regions of a photo, one per mask, in the order of their files; none for a normal photo.

    Raises:
        DatasetError: a mask is empty, or its value belongs to no kind of ``defects_config.json``.
    """
    found = []
    for path in record.masks:
        thresholds, values = saturation_thresholds(path.absolute().parents[CLASS_FOLDER]), values_of(path)
        value = int(values.max(initial=0))
        if value not in thresholds:
            raise DatasetError(f"{path}: value {value} is no kind of defect in {CONFIG}")
        threshold, relative = thresholds[value]
        area = float(np.count_nonzero(values))
        found.append(Region(values > 0, threshold * area if relative else min(threshold, area)))
    return found
