"""Published data sets in small trees of their layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.build import INDEXERS, build_records
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError, set_strict


@pytest.fixture(autouse=True)
def strict():
    set_strict(True)
    yield
    set_strict(False)


@pytest.fixture
def mask(write_photo):
    """Writes a mask that marks a square, or nothing."""

    def write(path, empty=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((40, 40), np.uint8)
        pixels[5:9, 5:9] = 0 if empty else 255
        Image.fromarray(pixels).save(path)

    return write


def summary(kind, root):
    records = build_records(DataConfig(sources=[{"kind": kind, "root": str(root)}]))
    return [(r.class_name, r.split, r.defect, r.image.name, len(r.masks)) for r in records]


def test_mvtec_ad_2(tmp_path, write_photo, mask):
    for place in ("train/good", "validation/good", "test_public/good", "test_public/bad"):
        write_photo(tmp_path / "can" / place / "000_regular.png")
    mask(tmp_path / "can" / "test_public" / "ground_truth" / "bad" / "000_regular_mask.png")
    for place in ("test_private", "test_private_mixed"):
        write_photo(tmp_path / "can" / place / "000_mixed.png")
    assert summary("mvtec_ad_2", tmp_path) == [
        ("can", "train", "good", "000_regular.png", 0),
        ("can", "validation", "good", "000_regular.png", 0),
        ("can", "test", "bad", "000_regular.png", 1),
        ("can", "test", "good", "000_regular.png", 0),
    ]


def test_mpdd(tmp_path, write_photo, mask):
    for split in ("train", "test"):
        write_photo(tmp_path / "metal_plate" / split / "good" / "000.png")
    write_photo(tmp_path / "metal_plate" / "test" / "major_rust" / "000.png")
    mask(tmp_path / "metal_plate" / "ground_truth" / "major_rust" / "000_mask.png")
    assert [row[1:3] for row in summary("mpdd", tmp_path)] == [
        ("train", "good"),
        ("test", "good"),
        ("test", "major_rust"),
    ]


def test_btad(tmp_path, write_photo, mask):
    for place in ("train/ok", "test/ok", "test/ko"):
        write_photo(tmp_path / "01" / place / "0000.bmp")
    mask(tmp_path / "01" / "ground_truth" / "ko" / "0000.png")
    assert [row[1:] for row in summary("btad", tmp_path)] == [
        ("train", "good", "0000.bmp", 0),
        ("test", "ko", "0000.bmp", 1),
        ("test", "good", "0000.bmp", 0),
    ]


def test_kolektor_sdd_is_divided_by_item(tmp_path, write_photo, mask):
    root = tmp_path / "KolektorSDD"
    for item in ("kos01", "kos02", "kos03"):
        for part in range(2):
            write_photo(root / item / f"Part{part}.jpg")
            mask(root / item / f"Part{part}_label.bmp", empty=part == 0)
    found = [(r.split, r.image.parent.name, r.defect) for r in INDEXERS["kolektor_sdd"](root, None)]
    kinds = ("good", "defect")
    assert found == [("train", item, kind) for item in ("kos01", "kos02") for kind in kinds] + [
        ("test", "kos03", kind) for kind in kinds
    ]
    mask(root / "kos03" / "Part7_label.bmp")
    with pytest.raises(DatasetError, match=r"kos03: 1 masks have no photo: .*Part7_label\.bmp"):
        summary("kolektor_sdd", root)


def test_kolektor_sdd2(tmp_path, write_photo, mask):
    root = tmp_path / "KolektorSDD2"
    for split, number in (("train", 10000), ("test", 20000)):
        for defect in (0, 1):
            write_photo(root / split / f"{number + defect}.png")
            mask(root / split / f"{number + defect}_GT.png", empty=not defect)
    name = "KolektorSDD2"
    assert summary("kolektor_sdd2", root) == [
        (name, "train", "good", "10000.png", 0),
        (name, "train", "defect", "10001.png", 1),
        (name, "test", "good", "20000.png", 0),
        (name, "test", "defect", "20001.png", 1),
    ]


def test_dagm(tmp_path, write_photo, mask):
    for split in ("Train", "Test"):
        for name in ("0001", "0002"):
            write_photo(tmp_path / "Class1" / split / f"{name}.PNG")
        mask(tmp_path / "Class1" / split / "Label" / "0002_label.PNG")
        (tmp_path / "Class1" / split / "Label" / "Labels.txt").write_text("1\n")
    assert [row[1:] for row in summary("dagm", tmp_path)] == [
        (split, defect, name, int(defect != "good"))
        for split in ("train", "test")
        for defect, name in (("good", "0001.PNG"), ("defect", "0002.PNG"))
    ]
    with pytest.raises(UserError, match="no class Class2; the classes here are Class1"):
        INDEXERS["dagm"](tmp_path, ["Class2"])


def test_a_tree_without_masks_that_mark_is_refused(tmp_path, write_photo):
    write_photo(tmp_path / "train" / "1.png")
    with pytest.raises(DatasetError, match="no photo with a mask that marks something; expected kosNN"):
        summary("kolektor_sdd2", tmp_path)


def test_real_iad(tmp_path, write_photo, mask):
    def row(kind, image, mask=None):
        return {"category": "usb", "anomaly_class": kind, "image_path": image, "mask_path": mask}

    splits = {
        "meta": {"normal_class": "OK", "prefix": "usb/"},
        "train": [row("OK", "OK/S0001/1.jpg")],
        "test": [row("OK", "OK/S0002/2.jpg"), row("HS", "NG/HS/S0003/3.jpg", "NG/HS/S0003/3.png")],
    }
    for folder in ("realiad_jsons", "realiad_jsons_sv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "usb.json").write_text(json.dumps(splits))
    for side in ("realiad_256", "realiad_1024"):
        for place in ("OK/S0001/1.jpg", "OK/S0002/2.jpg", "NG/HS/S0003/3.jpg"):
            write_photo(tmp_path / side / "usb" / place)
        mask(tmp_path / side / "usb" / "NG" / "HS" / "S0003" / "3.png")
    expected = [
        ("usb", "train", "good", "1.jpg", 0),
        ("usb", "test", "scratch", "3.jpg", 1),
        ("usb", "test", "good", "2.jpg", 0),
    ]
    assert summary("real_iad", tmp_path) == summary("real_iad", tmp_path / "realiad_jsons_sv") == expected
    assert "realiad_1024" in INDEXERS["real_iad"](tmp_path, None)[0].image.parts
    (tmp_path / "realiad_1024" / "usb" / "OK" / "S0002" / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 annotated photos are not there: .*2\.jpg"):
        summary("real_iad", tmp_path)
    (tmp_path / "realiad_jsons" / "usb.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"usb\.json: cannot be read as a split of Real-IAD \('meta'\)"):
        summary("real_iad", tmp_path)


def test_every_kind_of_a_config_has_a_reader():
    from typing import get_args

    from anomalygpt.config.schema import Kind

    assert {*INDEXERS} == {*get_args(Kind)}
