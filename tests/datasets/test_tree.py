"""The indexer of folders: MVTec's layout, a user's own, and what people call their folders and masks."""

import pytest

from anomalygpt.datasets.records import DatasetError, list_images
from anomalygpt.datasets.tree import index_tree

MASK_NAMES = ["bad1.png", "bad1_mask.png", "bad1.bm.png", "bad1_gt.bmp", "BAD1-label.tif", "bad1.jpg.png"]


@pytest.fixture
def parts(tmp_path, write_photo):
    """A class in the layout of a user's own parts: two good photos, two defects and a rusty one, one good to test."""
    for number in range(2):
        write_photo(tmp_path / "gear" / "good" / f"{number}.png")
        write_photo(tmp_path / "gear" / "defect" / f"bad{number}.jpg")
    write_photo(tmp_path / "gear" / "rust" / "r.png")
    write_photo(tmp_path / "gear" / "good_test" / "t.png")
    return tmp_path


def summary(records):
    return [(r.split, r.defect, r.image.name, [mask.name for mask in r.masks]) for r in records]


def masks_of(root):
    return {record.image.name: [mask.name for mask in record.masks] for record in index_tree(root)}


def test_mvtec_photos_are_listed_once_and_in_order(mvtec_tree):
    records = index_tree(mvtec_tree)
    expected = [("train", "good")] * 3 + [("test", "crack"), ("test", "good")]
    assert [(r.class_name, r.split, r.defect) for r in records[:5]] == [("bottle", *group) for group in expected]
    assert len(records) == len({r.image for r in records}) == 10
    for record in records:
        assert record.is_anomalous == (record.defect != "good") == bool(record.masks)


def test_one_class_and_a_folder_of_classes_give_the_same(parts, mvtec_tree, write_photo):
    assert index_tree(parts / "gear") == index_tree(parts, ["gear"])
    assert index_tree(mvtec_tree / "screw") == index_tree(mvtec_tree, ["screw"])
    assert {r.class_name for r in index_tree(parts)} == {"bottle", "gear", "screw"}


def test_good_photos_train_and_all_others_test(parts):
    assert summary(index_tree(parts)) == [
        ("train", "good", "0.png", []),
        ("train", "good", "1.png", []),
        ("test", "defect", "bad0.jpg", []),
        ("test", "defect", "bad1.jpg", []),
        ("test", "good", "t.png", []),
        ("test", "rust", "r.png", []),
    ]


@pytest.mark.parametrize(
    ("train", "good", "test", "defect"),
    [
        ("train", "Good", "test", "crack"),
        ("Train", "ok", "Test", "NG"),
        ("training", "OK", "testing", "nok"),
        ("TRAIN", "normal", "TEST", "abnormal"),
        ("train", "non-defective", "test", "Defective"),
        ("train", "pass", "test", "fail"),
        ("训练", "良品", "测试", "不良品"),
    ],
)
def test_folders_may_go_by_other_names(tmp_path, write_photo, train, good, test, defect):
    for place in ((train, good), (train, good), (test, good), (test, defect), ("val", good)):
        write_photo(tmp_path.joinpath("disc", *place, "0.png"))
    write_photo(tmp_path / "disc" / "GT" / defect.upper() / "0.png", value=255)
    found = [(r.split, r.is_anomalous, len(r.masks)) for r in index_tree(tmp_path)]
    assert sorted(found) == [("test", False, 0), ("test", True, 1), ("train", False, 0), ("validation", False, 0)]


@pytest.mark.parametrize("folder", ["masks", "Masks", "mask", "GT", "ground_truth", "Ground-Truth"])
@pytest.mark.parametrize("name", MASK_NAMES)
def test_masks_are_matched_flat_or_by_defect(parts, write_photo, folder, name):
    for place in (folder, f"{folder}/defect"):
        mask = write_photo(parts / "gear" / place / name, value=255)
        assert {photo: masks for photo, masks in masks_of(parts).items() if masks} == {"bad1.jpg": [name]}
        mask.unlink()


@pytest.mark.parametrize(
    "names",
    [
        ["masks/bad1_mask.png", "masks/bad1_mask_1.png"],
        ["masks/bad1_0.png", "masks/bad1_1.png", "masks/bad1_12.png"],
        ["masks/defect/bad1/a.png", "masks/defect/bad1/b.png"],
        ["masks/bad1/0.png", "masks/bad1/1.png"],
        ["masks/defect/bad1_1_mask.png", "masks/defect/bad1 (2)_mask.png"],
        ["defect/bad1_mask.png"],
        ["defect/masks/bad1.png"],
        ["mask/mask_bad1.png"],
    ],
)
def test_all_masks_of_a_photo_are_found_and_none_is_a_photo(parts, write_photo, names):
    for name in names:
        write_photo(parts / "gear" / name, value=255)
    found = masks_of(parts)
    assert sorted(found["bad1.jpg"]) == sorted(name.rpartition("/")[2] for name in names)
    assert len(found) == 6 and not found["bad0.jpg"]


def test_a_mask_of_two_photos_is_an_error_unless_each_has_its_own(parts, write_photo):
    write_photo(parts / "gear" / "defect" / "bad1.png")
    mask = write_photo(parts / "gear" / "masks" / "defect" / "bad1_mask.png", value=255)
    with pytest.raises(DatasetError, match=r"bad1_mask\.png: may be the mask of defect/bad1\.jpg, defect/bad1\.png"):
        index_tree(parts)
    mask.unlink()
    for name in ("bad1.png", "bad1.jpg"):
        write_photo(parts / "gear" / "masks" / "defect" / name, value=255)
    found = masks_of(parts)
    assert found["bad1.png"] == ["bad1.png"] and found["bad1.jpg"] == ["bad1.jpg"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("bda1.png", r"1 masks match no photo: bda1\.png"),
        ("defekt/bad1.png", r"1 masks match no photo: bad1\.png"),
        ("bad0.png", r"bad0\.png: may be the mask of defect/bad0\.jpg, rust/bad0\.png; put it in .*/<defect>/"),
    ],
)
def test_a_mask_that_belongs_to_no_photo_or_to_two_is_an_error(parts, write_photo, mask, message):
    write_photo(parts / "gear" / "rust" / "bad0.png")
    write_photo(parts / "gear" / "masks" / mask, value=255)
    with pytest.raises(DatasetError, match=message):
        index_tree(parts)


def test_a_mask_without_a_photo_is_said_where_no_photo_lacks_one(mvtec_tree, write_photo, capsys):
    write_photo(mvtec_tree / "screw" / "ground_truth" / "crack" / "001_mask.png", value=255)
    write_photo(mvtec_tree / "screw" / "ground_truth" / "good" / "000.png", value=0)
    assert len(index_tree(mvtec_tree)) == 10
    assert "1 masks match no photo: 001_mask.png" in capsys.readouterr().err


def test_a_folder_of_labels_may_be_masks_beside_train_and_test_alone(parts, mvtec_tree):
    (mvtec_tree / "screw" / "ground_truth").rename(mvtec_tree / "screw" / "labels")
    assert any(record.masks for record in index_tree(mvtec_tree / "screw"))
    (parts / "gear" / "rust").rename(parts / "gear" / "Label")
    with pytest.raises(DatasetError, match="Label: masks or a kind of defect"):
        index_tree(parts)


def test_results_are_no_kind_of_defect_and_unread_photos_are_named(parts, write_photo, capsys):
    for name in ("gear/results/0_overlay.png", "gear/rust/monday/1.png", "spare/0.png"):
        write_photo(parts / name)
    assert len(index_tree(parts)) == 6
    said = capsys.readouterr().err
    for words in (
        "results: taken for results",
        "monday: 1 photos that are not read",
        "spare: photos that are not read",
    ):
        assert words in said


def test_photos_beside_the_folders_of_mvtecs_layout_are_named(mvtec_tree, write_photo, capsys):
    for name in ("test/1.png", "extra/1.png"):
        write_photo(mvtec_tree / "screw" / name)
    assert len(index_tree(mvtec_tree)) == 10
    said = capsys.readouterr().err
    assert "test: photos that are not read" in said and "extra: photos that are not read" in said


def test_no_good_photos_among_those_to_test_are_said(mvtec_tree, capsys):
    (mvtec_tree / "screw" / "test" / "good").rename(mvtec_tree / "screw" / "test" / "gut")
    index_tree(mvtec_tree)
    assert "none of the test folders (crack, gut) means good photos; all count as defects" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["gear/defect/x.png", "gear/rust", "axle"])
def test_a_link_to_nothing_is_named(parts, place):
    link = parts / f"{place}2"
    link.symlink_to("/nowhere/x.png")
    with pytest.raises(DatasetError, match=rf"{link.name}: a link to /nowhere/x\.png, which is not there"):
        index_tree(parts)


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("nowhere", "no such folder"),
        ("screw/train/good/000.png", "this is a file"),
        ("screw/train/good", "no class folder; expected <class>/train/good"),
    ],
)
def test_a_wrong_root_is_explained(mvtec_tree, below, message):
    with pytest.raises(DatasetError, match=message):
        index_tree(mvtec_tree / below)


def test_a_training_folder_of_unknown_name_and_an_empty_class_are_errors(mvtec_tree, tmp_path):
    (mvtec_tree / "screw" / "train" / "good").rename(mvtec_tree / "screw" / "train" / "godo")
    with pytest.raises(DatasetError, match="godo: expected good photos to train on; rename it good"):
        index_tree(mvtec_tree)
    (tmp_path / "empty" / "gear" / "good").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"gear: no images; expected"):
        index_tree(tmp_path / "empty")


def test_images_are_found_by_any_suffix_and_hidden_files_are_not(tmp_path):
    for name in ("b.JPG", "a.png", "c.tif", "d.webp", "notes.txt", "._a.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tif", "d.webp"]


def test_numbered_good_folder_is_good_and_a_label_beside_its_photo_a_mask(parts, write_photo):
    write_photo(parts / "gear" / "good2" / "9.png")
    write_photo(parts / "gear" / "rust" / "r_label.png", value=255)
    found = {record.image.name: record for record in index_tree(parts)}
    assert not found["9.png"].is_anomalous and "r_label.png" not in found
    assert [mask.name for mask in found["r.png"].masks] == ["r_label.png"]


def test_mask_folder_beside_its_photos_is_no_kind_of_defect(parts, write_photo):
    write_photo(parts / "gear" / "rust_mask" / "r.png", value=255)
    found = {record.image.parent.name: record for record in index_tree(parts) if record.class_name == "gear"}
    assert "rust_mask" not in found
    assert [mask.parent.name for mask in found["rust"].masks] == ["rust_mask"]


def test_photo_beside_the_folders_of_a_class_is_named(parts, write_photo, capsys):
    write_photo(parts / "gear" / "loose.png")
    index_tree(parts)
    assert "gear: photos that are not read" in capsys.readouterr().err
