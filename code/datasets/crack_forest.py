"""Indexes CrackForest as it is published: photos of roads, and MATLAB files that mark the cracks (Shi et al., 2016)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    choose_classes,
    first_offenders,
    list_images,
    require_folder,
)
from anomalygpt.datasets.transforms import binary_image

logger = logging.getLogger(__name__)

CLASS_NAME = "pavement"
CRACK = "crack"
PHOTOS, TRUTH = "image", "groundTruth"
TRUTH_SUFFIX = ".mat"
EXPECTED = f"expected {PHOTOS}/NNN.jpg and {TRUTH}/NNN{TRUTH_SUFFIX}"

# Segments: 1 road, 2 cracks, 3 undamaged road enclosed by cracks, 4 further cracks. Segment 3 covers up to a third of a
# photo; counted as crack it would mark undamaged road.
CRACK_SEGMENTS = (2, 4)


def index_crack_forest(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo with a ground truth, sorted by path: one class ``pavement``, all of them split test.

    The authors publish no split and no photos for training. A photo whose ground truth marks nothing is normal. Photos
    without a ground truth (201 and up) show roads with and without cracks: they are left out and counted in the log.

    Args:
        classes: None or ``pavement``.

    Raises:
        DatasetError: a tree of another shape, a ground truth that can't be read, or one without its photo.
    """
    root = require_folder(root)
    choose_classes(root, [CLASS_NAME], classes)
    photos = {image.stem: image for image in list_images(root / PHOTOS)}
    truths = {path.stem: path for path in (root / TRUTH).glob(f"*{TRUTH_SUFFIX}")}
    if not photos or not truths:
        raise DatasetError(f"{root}: no photos or no truths; {EXPECTED}")
    alone = [truths[stem].relative_to(root) for stem in sorted(truths.keys() - photos.keys())]
    if alone:
        raise DatasetError(f"{root}: {len(alone)} truths have no photo: {first_offenders(alone)}; {EXPECTED}")
    if len(photos) > len(truths):
        logger.info("%s: %d photos without a truth are left out", root, len(photos) - len(truths))
    records = []
    for image in photos.values():
        truth = truths.get(image.stem)
        if truth is None:
            continue
        if read_cracks(truth).getbbox() is not None:
            records.append(ImageRecord(image, CLASS_NAME, "test", True, CRACK, truth, read_cracks))
        else:
            records.append(ImageRecord(image, CLASS_NAME, "test", False, GOOD, None))
    return records


def read_cracks(path: Path) -> Image.Image:
    """The cracks that a ground truth marks on the photo's own pixels: mode L, 0 and 255.

    Raises:
        DatasetError: the file can't be read, or holds no ``groundTruth.Segmentation`` of numbers.
    """
    from scipy.io import loadmat  # here: it takes longer to import than everything else in this layer

    try:
        with path.open("rb") as file:
            segments = np.asarray(loadmat(file)["groundTruth"]["Segmentation"][0, 0])
    # A damaged file makes loadmat raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path}: no groundTruth.Segmentation can be read in it ({reason})") from error
    if segments.ndim != 2 or not np.issubdtype(segments.dtype, np.number):
        found = f"{segments.dtype} {segments.shape}"
        raise DatasetError(f"{path}: groundTruth.Segmentation: expected numbers (H, W), found {found}")
    return binary_image(np.isin(segments, CRACK_SEGMENTS))
