"""The indexer of VisA as it is published."""

import pytest

from anomalygpt.datasets.csv_table import index_visa
from anomalygpt.datasets.records import DatasetError


def test_the_tables_photos_are_sorted_by_class_split_and_path(visa_tree):
    records = index_visa(visa_tree)
    assert [(r.class_name, r.split, r.defect, r.image.name) for r in records[:4]] == [
        ("candle", "train", "good", "0000.JPG"),
        ("candle", "train", "good", "0001.JPG"),
        ("candle", "test", "anomaly", "000.JPG"),
        ("candle", "test", "good", "0002.JPG"),
    ]
    assert len(records) == 8
    assert {r.class_name for r in index_visa(visa_tree, ["pcb1"])} == {"pcb1"}


def test_the_kinds_of_defect_are_read_where_they_are_listed(visa_tree):
    (visa_tree / "candle" / "image_anno.csv").write_text(
        "image,label,mask\n"
        "candle/Data/Images/Normal/000.JPG,normal,\n"
        'candle/Data/Images/Anomaly/000.JPG,"other,chunk of wax missing",candle/Data/Masks/Anomaly/000.png\n'
    )
    defects = {r.class_name: r.defect for r in index_visa(visa_tree) if r.is_anomalous}
    assert defects == {"candle": "other,chunk of wax missing", "pcb1": "anomaly"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("object,split", "thing,split", r"columns path, split, label, mask, class; found thing, split"),
        ("candle,test,normal", "candle,late,normal", r"line 8: split 'late'; expected train, validation, test"),
        ("candle,test,anomaly", "candle,test,odd", r"line 9: label 'odd'; expected normal or anomaly"),
        ("Normal/0000.JPG,", "Normal/7777.JPG,", r"line 2: no such file .*7777\.JPG"),
        ("0002.JPG,", "0002.JPG", "line 4 has 4 cells; expected 5"),
    ],
)
def test_a_wrong_table_is_explained(visa_tree, old, new, message):
    table = visa_tree / "split_csv" / "1cls.csv"
    assert old in table.read_text()
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=message) as caught:
        index_visa(visa_tree)
    assert "\n" not in str(caught.value)


def test_a_wrong_root_is_explained(visa_tree):
    with pytest.raises(DatasetError, match=r"candle: no split_csv/1cls\.csv; expected it beside <class>/Data"):
        index_visa(visa_tree / "candle")
