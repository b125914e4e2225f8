"""Photos that a CSV table lists."""

import pytest

from anomalygpt.datasets.csv_table import index_csv
from anomalygpt.datasets.records import DatasetError

HEADER = "path,split,label,mask,class"
GOOD_LINES = ["a.png,train,normal,,gear", "sub/b.png,test,anomaly,m.png,gear", "c.png,validation,normal,,axle"]


@pytest.fixture
def table(tmp_path, write_photo):
    def write(*lines, header=HEADER):
        for name in ("a.png", "sub/b.png", "c.png"):
            write_photo(tmp_path / name)
        write_photo(tmp_path / "m.png", value=255)
        path = tmp_path / "parts.csv"
        path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
        return path

    return write


def test_rows_become_records_in_order(table, tmp_path):
    records = index_csv(table(*GOOD_LINES[::-1], ""))
    assert [(r.image, r.class_name, r.split, r.defect, r.masks) for r in records] == [
        (tmp_path / "c.png", "axle", "validation", "good", ()),
        (tmp_path / "a.png", "gear", "train", "good", ()),
        (tmp_path / "sub/b.png", "gear", "test", "defect", (tmp_path / "m.png",)),
    ]
    assert [r.class_name for r in index_csv(table(*GOOD_LINES), ["axle"])] == ["axle"]


def test_a_defect_may_be_named(table):
    path = table("a.png,train,anomaly,,gear,broken tooth", "c.png,train,normal,,gear,", header=f"{HEADER},defect")
    assert [r.defect for r in index_csv(path)] == ["broken tooth", "good"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c.png,later,normal,,gear", r"line 3: split 'later'; expected train, validation, test"),
        ("c.png,train,2,,gear", r"line 3: label '2'; expected normal or anomaly"),
        ("no.png,train,normal,,gear", r"line 3: no such file .*no\.png$"),
        ("c.png,test,anomaly,no.png,gear", r"line 3: no such file .*no\.png$"),
        ("c.png,test,normal,m.png,gear", "line 3: a mask of a normal photo"),
        ("a.png,test,normal,,gear", r"line 3: a\.png is listed twice"),
        ("c.png,test,normal,,", "line 3: no class"),
        (",test,normal,,gear", "line 3: no path$"),
        ("c.png,test,normal", "line 3 has 3 cells; expected 5"),
        ('"c.png,test,normal,,gear', r"cannot be read as a CSV table"),
    ],
)
def test_a_wrong_line_is_named(table, line, message):
    with pytest.raises(DatasetError, match=message):
        index_csv(table(GOOD_LINES[0], line))


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("parts.csv", "place;split;mask", "columns path, label; found place, split, mask"),
        ("parts.csv", HEADER, "no rows below the header"),
        ("parts.csv", "", "found an empty file"),
        (".", HEADER, "a CSV file was expected"),
        ("none.csv", HEADER, "no such file"),
    ],
)
def test_a_wrong_table_or_path_is_explained(table, name, header, message):
    with pytest.raises(DatasetError, match=message):
        index_csv(table(header=header).parent / name)
