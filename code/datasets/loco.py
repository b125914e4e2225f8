"""MVTec LOCO AD's marked regions, and how much must be found of each (Bergmann et al., IJCV 2022)."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from anomalygpt.datasets.masks import values_of
from anomalygpt.datasets.photos import decoding
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.regions import Region

CONFIG = "defects_config.json"
CLASS_FOLDER = 3  # parents of a mask, <class>/ground_truth/<defect>/<stem>/NNN.png


def can_saturate(records: Sequence[ImageRecord]) -> bool:
    """Whether these are LOCO's photos, with the file of the area that must be found of each kind of defect."""
    folders = {mask.absolute().parents[CLASS_FOLDER] for record in records for mask in record.masks}
    return bool(folders) and all((folder / CONFIG).is_file() for folder in folders)


@cache
def _thresholds(path: Path) -> dict[int, tuple[float, bool]]:
    """By a region's value in masks: the area that must be found, and whether that is a fraction of the region's."""
    with decoding(path, "a list of kinds of defect"):
        return {
            int(kind["pixel_value"]): (float(kind["saturation_threshold"]), bool(kind["relative_saturation"]))
            for kind in json.loads(path.read_text(encoding="utf-8"))
        }


def regions(record: ImageRecord) -> list[Region]:
    """The marked regions of a photo, one per mask, in the order of their files; none for a normal photo.

    Raises:
        DatasetError: a mask's value belongs to no kind of ``defects_config.json``, or that can't be read.
    """
    found = []
    for path in record.masks:
        thresholds, values = _thresholds(path.absolute().parents[CLASS_FOLDER] / CONFIG), values_of(path)
        value = int(values.max(initial=0))
        if value not in thresholds:
            raise DatasetError(f"{path}: value {value} is no kind of defect in {CONFIG}")
        threshold, relative = thresholds[value]
        area = float(np.count_nonzero(values))
        found.append(Region(values > 0, threshold * area if relative else min(threshold, area)))
    return found
