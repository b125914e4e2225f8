"""The indexer of MVTec LOCO AD, and its many masks a photo."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.masks import load_mask, loco_regions
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


def test_a_photos_regions_know_how_much_of_them_must_be_found(loco_tree):
    record = logical(loco_tree)
    missing, extra = loco_regions(record)
    assert (missing.pixels.sum(), missing.needed) == (100, 50)
    assert (extra.pixels.sum(), extra.needed) == (200, 150)
    Image.new("L", (40, 40), 7).save(record.masks[1])
    with pytest.raises(DatasetError, match=r"001\.png: value 7 is no kind of defect"):
        loco_regions(record)


@pytest.mark.parametrize("text", ["[", '[{"defect_name": "x"}]', "[1]"])
def test_a_wrong_list_of_kinds_is_an_error(loco_tree, text):
    (loco_tree / "pushpins" / "defects_config.json").write_text(text)
    with pytest.raises(DatasetError, match=r"defects_config\.json: "):
        loco_regions(logical(loco_tree))
