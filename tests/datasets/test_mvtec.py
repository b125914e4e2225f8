"""The indexer of MVTec's layout."""

import pytest

from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError, list_images


def test_every_photo_is_listed_once_and_in_order(mvtec_tree):
    records = index_mvtec(mvtec_tree)
    assert [(r.class_name, r.split, r.defect) for r in records[:5]] == [
        ("bottle", "train", "good"),
        ("bottle", "train", "good"),
        ("bottle", "train", "good"),
        ("bottle", "test", "crack"),
        ("bottle", "test", "good"),
    ]
    assert len(records) == len({r.image for r in records}) == 10
    assert records == index_mvtec(mvtec_tree)


def test_only_defects_are_anomalous_and_have_a_mask(mvtec_tree):
    for record in index_mvtec(mvtec_tree):
        assert record.is_anomalous == (record.defect != "good")
        assert (record.mask is not None) == record.is_anomalous


def test_a_mask_may_have_the_photos_own_name(mvtec_tree):
    mask = mvtec_tree / "screw" / "ground_truth" / "crack" / "000_mask.png"
    mask.rename(mask.with_name("000.png"))
    [defect] = [r for r in index_mvtec(mvtec_tree, ["screw"]) if r.is_anomalous]
    assert defect.mask is not None and defect.mask.name == "000.png"


def test_a_missing_mask_is_an_error_that_names_the_photo(mvtec_tree, write_photo):
    for number in range(1, 6):
        write_photo(mvtec_tree / "screw" / "test" / "crack" / f"{number:03}.png")
    with pytest.raises(DatasetError, match=r"5 defect photos have no mask.*crack.001\.png.*and 2 more") as caught:
        index_mvtec(mvtec_tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("nowhere", "no such folder"),
        ("screw", "one class of an MVTec tree; give its parent"),
        ("screw/train/good/000.png", "this is a file"),
        ("screw/train/good", "no class folder; expected <class>/train/good"),
    ],
)
def test_a_wrong_root_is_explained(mvtec_tree, below, message):
    with pytest.raises(DatasetError, match=message):
        index_mvtec(mvtec_tree / below)


def test_a_class_without_training_photos_is_an_error(mvtec_tree):
    for photo in (mvtec_tree / "screw" / "train" / "good").iterdir():
        photo.unlink()
    with pytest.raises(DatasetError, match=r"screw.train.good: no images"):
        index_mvtec(mvtec_tree)


def test_images_are_found_by_any_suffix_and_hidden_files_are_not(tmp_path):
    for name in ("b.JPG", "a.png", "c.tif", "d.webp", "notes.txt", "._a.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tif", "d.webp"]


def test_the_real_photos_are_indexed(real_photos):
    records = index_mvtec(real_photos)
    assert {r.class_name for r in records} >= {"bottle", "screw", "grid_tiles"}
    assert all(r.mask is not None and r.mask.is_file() for r in records if r.is_anomalous)
