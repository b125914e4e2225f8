"""The indexer of a user's own parts."""

import pytest

from anomalygpt.datasets.folder import index_folder
from anomalygpt.datasets.records import DatasetError


@pytest.fixture
def parts(tmp_path, write_photo):
    for number in range(2):
        write_photo(tmp_path / "gear" / "good" / f"{number}.png")
        write_photo(tmp_path / "gear" / "defect" / f"bad{number}.jpg")
    write_photo(tmp_path / "gear" / "rust" / "r.png")
    write_photo(tmp_path / "gear" / "good_test" / "t.png")
    return tmp_path


def summary(records):
    return [(r.split, r.defect, r.image.name, r.mask and r.mask.name) for r in records]


def test_one_class_and_a_folder_of_classes_give_the_same(parts):
    assert index_folder(parts / "gear") == index_folder(parts)
    assert {r.class_name for r in index_folder(parts / "gear")} == {"gear"}


def test_good_photos_train_and_all_others_test(parts):
    assert summary(index_folder(parts)) == [
        ("train", "good", "0.png", None),
        ("train", "good", "1.png", None),
        ("test", "defect", "bad0.jpg", None),
        ("test", "defect", "bad1.jpg", None),
        ("test", "good", "t.png", None),
        ("test", "rust", "r.png", None),
    ]


def test_classes_are_chosen_by_name(parts, write_photo):
    write_photo(parts / "axle" / "good" / "0.png")
    assert {r.class_name for r in index_folder(parts)} == {"axle", "gear"}
    assert {r.class_name for r in index_folder(parts, ["axle"])} == {"axle"}


@pytest.mark.parametrize("place", ["masks/bad1.png", "masks/defect/bad1_mask.png", "ground_truth/defect/bad1.png"])
def test_masks_are_matched_flat_or_by_defect(parts, write_photo, place):
    write_photo(parts / "gear" / place, value=255)
    masks = {r.image.name: r.mask for r in index_folder(parts)}
    assert masks["bad1.jpg"] == parts / "gear" / place
    assert masks["bad0.jpg"] is None


def test_a_mask_that_belongs_to_no_photo_is_an_error(parts, write_photo):
    write_photo(parts / "gear" / "masks" / "bda1.png", value=255)
    with pytest.raises(DatasetError, match=r"1 masks match no photo: bda1\.png"):
        index_folder(parts)


def test_a_flat_mask_for_two_photos_is_an_error(parts, write_photo):
    write_photo(parts / "gear" / "rust" / "bad0.png")
    write_photo(parts / "gear" / "masks" / "bad0.png", value=255)
    with pytest.raises(DatasetError, match="bad0 names photos of several defects"):
        index_folder(parts)


def test_other_trees_are_explained(parts, mvtec_tree, tmp_path):
    with pytest.raises(DatasetError, match="no folder good/"):
        index_folder(parts / "gear" / "rust")
    with pytest.raises(DatasetError, match="MVTec's layout"):
        index_folder(mvtec_tree / "screw")
    with pytest.raises(DatasetError, match="no such folder"):
        index_folder(tmp_path / "nowhere")
