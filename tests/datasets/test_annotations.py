"""COCO, YOLO and LabelMe in their published layouts: splits, kinds, and the pixels that shapes mark."""

import json

import numpy as np
import pytest
import yaml

from anomalygpt.datasets.annotations import index_coco, index_labelme, index_yolo
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import set_strict

SIZE = (60, 40)
BOX = np.zeros((40, 60), bool)
BOX[10:20, 30:50] = True  # left 30, top 10, width 20, height 10
TRIANGLE = [[2, 30], [22, 30], [2, 38]]


@pytest.fixture(autouse=True)
def strict():
    set_strict(True)
    yield
    set_strict(False)


def found(records):
    return [(r.class_name, r.split, r.image.parent.name, r.image.name, r.defect, len(r.masks)) for r in records]


def pixels(record):
    return np.asarray(load_mask(record)) > 0


def write_coco(path, photos, annotations):
    categories = [{"id": 1, "name": "scratch"}, {"id": 2, "name": "OK"}, {"id": 3, "name": "hole"}]
    images = [{"id": at, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for at, name in enumerate(photos)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


ANNOTATIONS = [
    {"image_id": 0, "category_id": 1, "bbox": [30, 10, 20, 10], "segmentation": []},
    {"image_id": 1, "category_id": 2, "bbox": [0, 0, 60, 40]},
    {"image_id": 2, "category_id": 3, "bbox": [0, 0, 9, 9], "segmentation": [sum(TRIANGLE, [])]},
    {"image_id": 2, "category_id": 1, "segmentation": {"size": [40, 60], "counts": [40 * 59, 40]}},
]


def check(records, where):
    """A box, a photo with a good part alone, and two shapes of other kinds."""
    scratch, good, both = records
    name, split, folders = where
    assert found(records) == [
        (name, split, folders, "a.png", "scratch", 1),
        (name, split, folders, "b.png", "good", 0),
        (name, split, folders, "c.png", "hole,scratch", 1),
    ]
    assert (pixels(scratch) == BOX).all() and not good.is_anomalous
    marked = pixels(both)
    assert marked[31, 4] and marked[:, 59].all() and not marked[37, 20] and not marked[5, 5]


@pytest.mark.parametrize("layout", ["published", "roboflow"])
def test_coco(tmp_path, write_photo, layout):
    root = tmp_path / "gears"
    published = layout == "published"
    for folder in ("train2017", "val2017") if published else ("train", "test"):
        for name in "abc":
            write_photo(root / folder / f"{name}.png", SIZE)
        path = root / ("annotations" if published else folder)
        path = path / (f"instances_{folder}.json" if published else "_annotations.coco.json")
        write_coco(path, ["a.png", "b.png", "c.png"], ANNOTATIONS)
    (root / "notes.json").write_text("[]")
    records = index_coco(root)
    check(records[:3], ("gears", "train", "train2017" if published else "train"))
    check(records[3:], ("gears", "test", "val2017" if published else "test"))


def test_photos_that_no_coco_file_lists_are_named(tmp_path, write_photo):
    for name in "abc":
        write_photo(tmp_path / "train" / f"{name}.png", SIZE)
    write_coco(tmp_path / "train" / "_annotations.coco.json", ["a.png", "b.png"], ANNOTATIONS[:1])
    with pytest.raises(Exception, match=r"1 photos that no JSON file lists are not read: .*c\.png"):
        index_coco(tmp_path)


def test_coco_without_a_split_or_photos_is_reported(tmp_path, write_photo):
    write_coco(tmp_path / "labels.json", ["a.png", "b.png", "c.png"], ANNOTATIONS)
    with pytest.raises(DatasetError, match=r"3 annotated photos are not there"):
        index_coco(tmp_path)
    for name in "abc":
        write_photo(tmp_path / "images" / f"{name}.png", SIZE)
    with pytest.raises(Exception, match="are tested, and none trains"):
        index_coco(tmp_path)
    set_strict(False)
    check(index_coco(tmp_path), (tmp_path.name, "test", "images"))
    write_coco(
        tmp_path / "labels2.json", ["a.png"], [ANNOTATIONS[0] | {"segmentation": {"counts": "xyz", "size": [1, 1]}}]
    )
    with pytest.raises(DatasetError, match="compressed run lengths; export polygons"):
        index_coco(tmp_path)
    (tmp_path / "labels2.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    with pytest.raises(DatasetError, match=r"labels2\.json: cannot be read as annotations"):
        index_coco(tmp_path)


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "list"])
def test_yolo(tmp_path, write_photo, layout):
    root = tmp_path / "gears"
    folder = "train/images" if layout == "roboflow" else "images/train"
    labels = root / folder.replace("images", "labels")
    labels.mkdir(parents=True)
    for name in "abc":
        write_photo(root / folder / f"{name}.png", SIZE)
    box = f"{40 / 60} {15 / 40} {20 / 60} {10 / 40}"
    (labels / "a.txt").write_text(f"0 {box}\n")
    (labels / "b.txt").write_text("1 0.5 0.5 1 1\n")
    polygon = " ".join(f"{x / 60} {y / 40}" for x, y in TRIANGLE)
    (labels / "c.txt").write_text(f"2 {polygon}\n0 {59.5 / 60} 0.5 {1 / 60} 1\n")
    table = {"names": ["scratch", "OK", "hole"], "nc": 3, "train": folder}
    if layout == "ultralytics":
        table |= {"path": "../datasets/gears", "names": {0: "scratch", 1: "OK", 2: "hole"}}
    elif layout == "roboflow":
        table["train"] = f"../{folder}"
    else:
        (root / "train.txt").write_text("".join(f"./{folder}/{name}.png\n" for name in "abc"))
        table["train"] = "train.txt"
    (root / "data.yaml").write_text(yaml.safe_dump(table))
    check(index_yolo(root), ("gears", "train", folder.rpartition("/")[2]))
    (labels / "b.txt").unlink()
    assert found(index_yolo(root))[1][4:] == ("good", 0), "a photo without a label file is normal"
    (labels / "b.txt").write_text("0 0.5 0.5 1\n")
    with pytest.raises(DatasetError, match=r"b\.txt: cannot be read as annotations"):
        index_yolo(root)
    (root / "data.yaml").write_text(yaml.safe_dump(table | {"train": "nowhere"}))
    with pytest.raises(DatasetError, match="nowhere: no such file"):
        index_yolo(root)
    (root / "data.yaml").unlink()
    set_strict(False)


def test_yolo_needs_its_table(tmp_path):
    with pytest.raises(DatasetError, match=r"no data\.yaml with names, train and val"):
        index_yolo(tmp_path)


def test_labelme(tmp_path, write_photo):
    def shape(label, kind, points):
        return {"label": label, "shape_type": kind, "points": points}

    shapes = {
        "a": [shape("scratch", "rectangle", [[50, 20], [30, 10]])],
        "b": [shape("OK", "rectangle", [[0, 0], [60, 40]])],
        "c": [shape("hole", "polygon", TRIANGLE), shape("scratch", "polygon", [[59, 0], [60, 0], [60, 40], [59, 40]])],
    }
    root = tmp_path / "gears"
    for name, own in shapes.items():
        write_photo(root / "train" / f"{name}.png", SIZE)
        content = {"version": "5.4", "shapes": own, "imagePath": f"{name}.png", "imageHeight": 40, "imageWidth": 60}
        (root / "train" / f"{name}.json").write_text(json.dumps(content))
    write_photo(root / "test" / "d.png", SIZE)
    (root / "test" / "e.json").write_text(
        json.dumps(
            content | {"imagePath": "..\\test\\e.png", "shapes": [shape("dent", "circle", [[30, 20], [30, 30]])]}
        )
    )
    with pytest.raises(DatasetError, match=r"1 annotated photos are not there: .*e\.png"):
        index_labelme(root)
    write_photo(root / "test" / "e.png", SIZE)
    records = index_labelme(root)
    check(records[:3], ("gears", "train", "train"))
    assert found(records[3:]) == [
        ("gears", "test", "test", "d.png", "good", 0),
        ("gears", "test", "test", "e.png", "dent", 1),
    ]
    assert abs(pixels(records[4]).sum() - np.pi * 100) < 30
    (root / "test" / "e.json").write_text(json.dumps(content | {"shapes": [shape("dent", "line", TRIANGLE)]}))
    with pytest.raises(DatasetError, match="a shape line; expected polygon, rectangle or circle"):
        index_labelme(root)


def test_shapes_lie_on_the_upright_photo(tmp_path, write_photo):
    from PIL import Image

    root = tmp_path / "gears"
    path = write_photo(root / "images" / "train" / "a.jpg", (40, 60))
    photo = Image.open(path)
    photo.getexif()[0x0112] = 6
    photo.save(path, exif=photo.getexif())
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text(f"0 {40 / 60} {15 / 40} {20 / 60} {10 / 40}\n")
    (root / "data.yaml").write_text("names: [scratch]\ntrain: images/train\n")
    assert (pixels(index_yolo(root)[0]) == BOX).all()


def test_coco_names_as_tools_write_them(tmp_path, write_photo):
    for name in ("a.png", "b.png", "c.png"):
        write_photo(tmp_path / "gears" / "test" / "deep" / name, SIZE)
    names = ["./deep/a.png", "deep//b.png", "deep\\c.png"]
    write_coco(tmp_path / "gears" / "test" / "_annotations.coco.json", names, ANNOTATIONS)
    check(index_coco(tmp_path / "gears"), ("gears", "test", "deep"))


def test_coco_shapes_are_checked_against_the_photo(tmp_path, write_photo):
    root = tmp_path / "gears"
    write_coco(root / "test" / "a.json", ["a.png"], ANNOTATIONS[:1])
    write_photo(root / "test" / "a.png", (100, 100))
    [record] = index_coco(root)
    with pytest.raises(DatasetError, match=r"60 x 40 pixels, and its photo a\.png 100 x 100"):
        load_mask(record)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [0, 0, 0, 0]}, "neither segmentation nor bbox"),
        ({"segmentation": [[1, 2]]}, "cannot be read as a mask"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "cannot be read as a mask"),
    ],
)
def test_wrong_shapes_of_coco_are_one_line(tmp_path, write_photo, entry, message):
    root = tmp_path / "gears"
    write_photo(root / "test" / "a.png", SIZE)
    write_coco(root / "test" / "a.json", ["a.png"], [{"image_id": 0, "category_id": 1} | entry])
    with pytest.raises(DatasetError, match=message):
        load_mask(index_coco(root)[0])


def test_a_photo_that_is_annotated_or_found_twice_is_reported(tmp_path, write_photo):
    root = tmp_path / "gears"
    for folder in ("images", "thumbs"):
        write_photo(root / folder / "a.png", SIZE)
    write_coco(root / "test.json", ["a.png"], ANNOTATIONS[:1])
    with pytest.raises(DatasetError, match=r"a\.png may be .*images/a\.png or .*thumbs/a\.png"):
        index_coco(root)
    (root / "thumbs" / "a.png").unlink()
    write_coco(root / "test_old.json", ["a.png"], [])
    with pytest.raises(DatasetError, match=r"a\.png: is in .*test_old\.json and in .*test\.json"):
        index_coco(root)


def test_yolo_without_any_file_of_labels_is_reported(tmp_path, write_photo):
    write_photo(tmp_path / "images" / "test" / "a.jpg", SIZE)
    (tmp_path / "data.yaml").write_text("names: {'0': ok}\ntest: images/test\n")
    with pytest.raises(DatasetError, match=r"no photo has its file of labels; .*labels/test/a\.txt"):
        index_yolo(tmp_path)
    (tmp_path / "labels" / "test").mkdir(parents=True)
    (tmp_path / "labels" / "test" / "a.txt").write_text("\ufeff0.0 0.5 0.5 0.1 0.1\n")
    assert not index_yolo(tmp_path)[0].is_anomalous
