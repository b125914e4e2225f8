"""The table of what was found, and warnings about masks."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.build import overview
from anomalygpt.datasets.tree import index_pair, index_tree
from anomalygpt.errors import UserError, set_strict


@pytest.fixture(autouse=True)
def fresh_warnings():
    set_strict(False)
    yield
    set_strict(False)


@pytest.fixture
def tree(mvtec_tree):
    mask = np.zeros((40, 40), np.uint8)
    mask[5:9, 5:9] = 255
    for name in ("bottle", "screw"):
        Image.fromarray(mask).save(mvtec_tree / name / "ground_truth" / "crack" / "000_mask.png")
    return mvtec_tree


def test_a_line_per_class_split_and_kind(tree, capsys):
    assert overview(index_tree(tree, ["screw"])) == [
        "class  split  kind   photos  masks  read as",
        "screw  train  good   3",
        "screw  test   crack  1       1      binary 0/255",
        "screw  test   good   1",
    ]
    assert capsys.readouterr().err == ""


def test_photos_without_masks_are_said_once(tree, write_photo, capsys):
    for name in ("screw", "bottle"):
        (tree / name / "ground_truth").rename(tree / name / "no")
    assert overview(index_tree(tree))[-1] == "no defect photo has a mask: image metrics alone"
    (tree / "screw" / "no").rename(tree / "screw" / "ground_truth")
    assert "alone" not in overview(index_tree(tree))[-1]
    capsys.readouterr()
    write_photo(tree / "screw" / "test" / "crack" / "001.png")
    overview(index_tree(tree))
    assert "1 defect photos have no mask (001.png)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grey", "message"),
    [(lambda m: 255 - m, "more than half of the photo is marked in 1 of 1 masks"), (lambda m: 0 * m, "mark nothing")],
)
def test_inverted_and_empty_masks_are_said_and_refused_where_reading_is_strict(tree, grey, message, capsys):
    path = tree / "screw" / "ground_truth" / "crack" / "000_mask.png"
    Image.fromarray(grey(np.asarray(Image.open(path)))).save(path)
    records = index_tree(tree)
    overview(records)
    assert message in capsys.readouterr().err
    overview(records, with_masks=False)
    set_strict(True)
    with pytest.raises(UserError, match=message):
        overview(records)


def test_two_folders_are_a_class(tree):
    screw = tree / "screw"
    found = index_pair(screw / "train" / "good", screw / "test" / "crack", screw / "ground_truth" / "crack", 2)
    assert [(r.class_name, r.split, r.defect, len(r.masks)) for r in found] == [
        *[("train", "train", "good", 0)] * 2,
        ("train", "test", "crack", 1),
        ("train", "test", "good", 0),
    ]


def test_test_photos_that_train_too_are_reported(tree, capsys):
    copied = tree / "bottle" / "train" / "good" / "000.png"
    for name in ("bottle", "screw"):
        (tree / name / "test" / "good" / "copy.png").write_bytes(copied.read_bytes())
    overview(index_tree(tree))
    warning = capsys.readouterr().err
    assert "warning: 2 test photos are also training photos, byte for byte: " in warning and "copy.png" in warning
