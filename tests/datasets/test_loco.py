"""The indexer of MVTec LOCO AD, and its many masks a photo."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.tree import index_tree


def logical(tree):
    [record] = [r for r in index_tree(tree) if r.defect == "logical_anomalies"]
    return record


def test_the_validation_photos_are_a_split_of_their_own(loco_tree):
    good = [(split, "good") for split in ("train", "train", "validation", "validation", "test", "test")]
    defects = [("test", "logical_anomalies"), ("test", "structural_anomalies")]
    assert [(r.split, r.defect) for r in index_tree(loco_tree)] == [*good, *defects]


def test_a_photos_masks_count_together(loco_tree):
    mask = np.asarray(load_mask(logical(loco_tree)))
    assert mask.shape == (40, 40) and set(np.unique(mask)) == {0, 255}
    assert np.count_nonzero(mask) == 100 + 200
    Image.new("L", (8, 8), 255).save(logical(loco_tree).masks[0].with_name("002.png"))
    with pytest.raises(DatasetError, match="expected masks of one size, found 40 x 40, 8 x 8"):
        load_mask(logical(loco_tree))
