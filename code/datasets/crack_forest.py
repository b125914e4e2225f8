"""Indexes CrackForest as it is published: photos of roads, and MATLAB files that mark the cracks (Shi et al., 2016)."""

import logging
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.masks import read_cracks
from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    choose_classes,
    first_offenders,
    list_images,
    require_folder,
)

logger = logging.getLogger(__name__)

CLASS_NAME = "pavement"
PHOTOS, TRUTH = "image", "groundTruth"
EXPECTED = f"expected {PHOTOS}/NNN.jpg and {TRUTH}/NNN.mat"


def index_crack_forest(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo with a ground truth, sorted by path: one class ``pavement``, all of them split test.

    The authors publish no split and no photos for training. A photo whose ground truth marks nothing is normal. Photos
    without a ground truth (201 and up) show roads with and without cracks: they are left out and counted in the log.

    Raises:
        DatasetError: a tree of another shape, a ground truth that can't be read, or one without its photo.
    """
    root = require_folder(root)
    choose_classes(root, [CLASS_NAME], classes)
    photos = {image.stem: image for image in list_images(root / PHOTOS)}
    truths = {path.stem: path for path in (root / TRUTH).glob("*.mat")}
    if not photos or not truths:
        raise DatasetError(f"{root}: no photos or no ground truths; {EXPECTED}")
    alone = [truths[stem].relative_to(root) for stem in sorted(truths.keys() - photos.keys())]
    if alone:
        raise DatasetError(f"{root}: {len(alone)} ground truths have no photo: {first_offenders(alone)}; {EXPECTED}")
    if len(photos) > len(truths):
        logger.info("%s: %d photos without a ground truth are left out", root, len(photos) - len(truths))
    records = []
    for image in (image for stem, image in photos.items() if stem in truths):
        truth = truths[image.stem]
        if read_cracks(truth).getbbox() is not None:
            records.append(ImageRecord(image, CLASS_NAME, "test", True, "crack", (truth,)))
        else:
            records.append(ImageRecord(image, CLASS_NAME, "test", False, GOOD))
    return records
