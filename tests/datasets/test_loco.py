"""The indexer of MVTec LOCO AD, and its many masks a photo."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.loco import index_loco, regions, saturation_thresholds
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.transforms import load_mask


def logical(tree):
    [record] = [r for r in index_loco(tree) if r.defect == "logical_anomalies"]
    return record


def test_the_validation_photos_are_a_split_of_their_own(loco_tree):
    assert [(r.split, r.defect) for r in index_loco(loco_tree)] == [
        ("train", "good"),
        ("train", "good"),
        ("validation", "good"),
        ("validation", "good"),
        ("test", "good"),
        ("test", "good"),
        ("test", "logical_anomalies"),
        ("test", "structural_anomalies"),
    ]


def test_a_photos_masks_count_together(loco_tree):
    mask = np.asarray(load_mask(logical(loco_tree)))
    assert mask.shape == (40, 40) and set(np.unique(mask)) == {0, 255}
    assert np.count_nonzero(mask) == 100 + 200


def test_a_photos_regions_know_how_much_of_them_must_be_found(loco_tree):
    record = logical(loco_tree)
    missing, extra = regions(record)
    assert (missing.pixels.sum(), missing.needed) == (100, 50)
    assert (extra.pixels.sum(), extra.needed) == (200, 150)
    Image.new("L", (40, 40), 7).save(record.mask / "001.png")
    with pytest.raises(DatasetError, match=r"001\.png: value 7 is no kind of defect"):
        regions(record)


@pytest.mark.parametrize("text", ["[", '[{"defect_name": "x"}]', "[1]"])
def test_a_wrong_list_of_kinds_is_an_error(loco_tree, text):
    (loco_tree / "pushpins" / "defects_config.json").write_text(text)
    with pytest.raises(DatasetError, match=r"defects_config\.json: "):
        saturation_thresholds(loco_tree / "pushpins")


def test_masks_of_two_sizes_are_an_error(loco_tree):
    record = logical(loco_tree)
    Image.new("L", (8, 8), 255).save(record.mask / "002.png")
    with pytest.raises(DatasetError, match="expected masks of one size, found 40 x 40, 8 x 8"):
        load_mask(record)


def test_wrong_trees_are_explained(loco_tree, write_photo, tmp_path):
    with pytest.raises(DatasetError, match="one class of a LOCO tree; give its parent"):
        index_loco(loco_tree / "pushpins")
    with pytest.raises(DatasetError, match="no class folder; expected <class>/train/good"):
        index_loco(loco_tree / "pushpins" / "train")
    write_photo(loco_tree / "pushpins" / "test" / "logical_anomalies" / "007.png")
    with pytest.raises(DatasetError, match=r"1 defect photos have no masks .*logical_anomalies.007\.png"):
        index_loco(loco_tree)
    write_photo(loco_tree / "pushpins" / "test" / "crack" / "000.png")
    with pytest.raises(DatasetError, match="unknown folders crack; expected"):
        index_loco(loco_tree)
    for photo in (loco_tree / "pushpins" / "validation" / "good").iterdir():
        photo.unlink()
    (loco_tree / "pushpins" / "test" / "crack" / "000.png").unlink()
    (loco_tree / "pushpins" / "test" / "crack").rmdir()
    with pytest.raises(DatasetError, match=r"validation.good: no images"):
        index_loco(loco_tree)
