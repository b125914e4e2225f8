"""Indexes MVTec LOCO AD: logical and structural anomalies, several masks per photo (Bergmann et al., IJCV 2022)."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.mvtec import walk_tree
from anomalygpt.datasets.photos import open_image
from anomalygpt.datasets.records import GOOD, DatasetError, ImageRecord, list_folders, list_images, require_masks
from anomalygpt.datasets.transforms import binary_image, mask_8bit

DEFECTS = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"
CLASS_FOLDER = 2  # parents of a photo's masks, <class>/ground_truth/<defect>/<stem>
EXPECTED = (
    f"expected <class>/train/{GOOD}, <class>/validation/{GOOD}, <class>/test/<{GOOD}, {', '.join(DEFECTS)}> "
    "and <class>/ground_truth/<defect>/<stem>/NNN.png"
)


class DefectRegion(NamedTuple):
    """One marked region of a photo.

    Attributes:
        pixels: (H, W) bool, on the photo's own pixels.
        needed: the number of pixels above which finding more counts no further (saturated PRO of LOCO's paper).
    """

    pixels: NDArray[np.bool_]
    needed: float


def index_loco(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo, sorted by class, split and path; ``validation/good`` is the split ``validation``.

    A defect photo's mask is its folder ``ground_truth/<defect>/<stem>``: ``transforms.load_mask`` gives the union of
    its images, :func:`regions` each of them.

    Raises:
        DatasetError: a tree of another shape, an unknown class, or a defect without masks.
    """
    records = walk_tree(root, classes, "a LOCO", EXPECTED, ("train", "validation", "test"), _mask_folders, read_union)
    for record in records:
        if record.defect not in (GOOD, *DEFECTS):
            raise DatasetError(f"{record.image.parents[1]}: unknown folder {record.defect}; {EXPECTED}")
    require_masks(Path(root), records, "masks ground_truth/<defect>/<stem>/NNN.png")
    return records


def _mask_folders(folder: Path) -> dict[str, Path]:
    return {masks.name: masks for masks in list_folders(folder) if list_images(masks)}


def _read_masks(folder: Path) -> list[NDArray[np.uint8]]:
    """The masks in a photo's folder, (H, W) each, in the order of their files."""
    masks = [np.asarray(mask_8bit(open_image(path))) for path in list_images(folder)]
    sizes = sorted({f"{width} x {height}" for height, width in (mask.shape for mask in masks)})
    if len(sizes) != 1:
        raise DatasetError(f"{folder}: expected masks of one size, found {', '.join(sizes) or 'none'}")
    return masks


def read_union(folder: Path) -> Image.Image:
    """What the masks in a photo's folder mark together: mode L, 0 and 255."""
    return binary_image(np.any(_read_masks(folder), axis=0))


def can_saturate(records: Sequence[ImageRecord]) -> bool:
    """Whether these are LOCO's photos, with the file of the area that must be found of each kind of defect."""
    folders = {record.mask.parents[CLASS_FOLDER] for record in records if record.mask and record.mask.is_dir()}
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


def regions(record: ImageRecord) -> list[DefectRegion]:
    """The marked regions of a photo, one per mask, in the order of their files; none for a normal photo.

    Raises:
        DatasetError: a mask is empty, or its value belongs to no kind of ``defects_config.json``.
    """
    if record.mask is None:
        return []
    found = []
    thresholds = saturation_thresholds(record.mask.parents[CLASS_FOLDER])
    for path, values in zip(list_images(record.mask), _read_masks(record.mask), strict=True):
        value = int(values.max(initial=0))
        if value not in thresholds:
            raise DatasetError(f"{path}: value {value} is no kind of defect in {CONFIG}")
        threshold, relative = thresholds[value]
        area = float(np.count_nonzero(values))
        found.append(DefectRegion(values > 0, threshold * area if relative else min(threshold, area)))
    return found
