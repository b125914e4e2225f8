"""The indexer of VisA as it is published."""

import pytest

from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.splits import normal_split
from anomalygpt.datasets.transforms import load_mask
from anomalygpt.datasets.visa import index_visa


def change_table(tree, old, new):
    table = tree / "split_csv" / "1cls.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_the_tables_photos_are_sorted_by_class_split_and_path(visa_tree):
    records = index_visa(visa_tree)
    assert [(r.class_name, r.split, r.defect, r.image.name) for r in records[:4]] == [
        ("candle", "train", "good", "0000.JPG"),
        ("candle", "train", "good", "0001.JPG"),
        ("candle", "test", "anomaly", "000.JPG"),
        ("candle", "test", "good", "0002.JPG"),
    ]
    assert len(records) == 8 and records == index_visa(visa_tree)
    assert {r.class_name for r in index_visa(visa_tree, ["pcb1"])} == {"pcb1"}


def test_small_defect_numbers_mark_all_of_their_pixels(visa_tree, transform):
    [defect] = [r for r in index_visa(visa_tree, ["candle"]) if r.is_anomalous]
    assert transform.mask(load_mask(defect)).min() == 1


def test_the_kinds_of_defect_are_read_where_they_are_listed(visa_tree):
    (visa_tree / "candle" / "image_anno.csv").write_text(
        "image,label,mask\n"
        "candle/Data/Images/Normal/000.JPG,normal,\n"
        'candle/Data/Images/Anomaly/000.JPG,"other,chunk of wax missing",candle/Data/Masks/Anomaly/000.png\n'
    )
    defects = {r.class_name: r.defect for r in index_visa(visa_tree) if r.is_anomalous}
    assert defects == {"candle": "other,chunk of wax missing", "pcb1": "anomaly"}


def test_no_test_photo_is_ever_validated_on(visa_tree):
    train, validation = normal_split(index_visa(visa_tree), 0.5, seed=0)
    assert len(train) == len(validation) == 2
    assert {r.split for r in [*train, *validation]} == {"train"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split", "class,split", r"columns object, split, label, image, mask; found class, split"),
        ("candle,test,normal", "candle,val,normal", r"line 8: split 'val'; expected train, validation, test"),
        ("candle,test,anomaly", "candle,test,bad", r"line 9: label 'bad'; expected normal or anomaly"),
        (
            "candle/Data/Masks/Anomaly/000.png",
            "",
            r"1 defect photos have no mask in .*: candle.Data.Images.Anomaly.000\.JPG",
        ),
        ("Normal/0000.JPG,", "Normal/7777.JPG,", r"line 2: no such file .*7777\.JPG"),
        ("0002.JPG,", "0002.JPG", "line 4 has 4 cells; expected 5"),
    ],
)
def test_a_wrong_table_is_explained(visa_tree, old, new, message):
    change_table(visa_tree, old, new)
    with pytest.raises(DatasetError, match=message) as caught:
        index_visa(visa_tree)
    assert "\n" not in str(caught.value)


def test_a_wrong_root_is_explained(visa_tree, mvtec_tree, tmp_path):
    with pytest.raises(DatasetError, match=r"no split_csv/1cls\.csv; expected split_csv/1cls\.csv beside <class>"):
        index_visa(visa_tree / "split_csv")
    with pytest.raises(DatasetError, match="one class of VisA"):
        index_visa(visa_tree / "candle")
    with pytest.raises(DatasetError, match="read it as kind: mvtec"):
        index_visa(mvtec_tree)
