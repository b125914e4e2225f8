"""The indexer of CrackForest, whose masks are MATLAB files."""

import numpy as np
import pytest
from scipy.io import savemat

from anomalygpt.datasets.layouts import index_crack_forest
from anomalygpt.datasets.masks import load_mask, read_cracks
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from tests.shared_data import shared


def test_marked_photos_are_listed_and_the_others_left_out(crack_tree):
    records = index_crack_forest(crack_tree)
    assert {r.class_name for r in records} == {"pavement"}
    assert [(r.image.stem, r.defect) for r in records] == [("001", "crack"), ("002", "crack"), ("003", "good")]
    assert {(r.split, r.is_anomalous == (r.defect == "crack")) for r in records} == {("test", True)}
    assert not records[2].masks


def test_whole_road_between_cracks_is_not_marked(crack_tree):
    mask = np.asarray(load_mask(index_crack_forest(crack_tree)[1]))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert np.count_nonzero(mask) == 4 * 36 - 2 * 10 + 2 * 4


def test_wrong_trees_are_explained(crack_tree, tmp_path):
    with pytest.raises(DatasetError, match="no annotations of this kind"):
        index_crack_forest(crack_tree / "image")
    (crack_tree / "image" / "002.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 annotated photos are not there: .*002\.jpg"):
        index_crack_forest(crack_tree)


def test_a_damaged_truth_is_named(crack_tree):
    truth = crack_tree / "groundTruth" / "001.mat"
    truth.write_bytes(truth.read_bytes()[:150])
    with pytest.raises(DatasetError, match=r"001\.mat: cannot be read as CrackForest's groundTruth\.Segmentation"):
        index_crack_forest(crack_tree)
    savemat(truth, {"groundTruth": {"Boundaries": np.zeros((2, 2))}})
    with pytest.raises(DatasetError, match="cannot be read as"):
        read_cracks(truth)
    with pytest.raises(DatasetError, match="no such file"):
        read_cracks(truth.with_name("no.mat"))


def test_the_real_photos_have_masks_of_their_own_size():
    records = index_crack_forest(shared("data/CrackForest"))
    assert len(records) == 118 and all(r.is_anomalous for r in records)
    for record in records[::10]:
        assert load_mask(record).size == load_image(record.image).size
    # Half of this photo is road that cracks enclose.
    assert np.asarray(load_mask(records[100])).mean() / 255 == pytest.approx(0.0577, abs=1e-3)
