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


LINES = ["a.png,train,{0},,齿轮", "c.png,{2},{0},,齿轮", "sub/b.png,test,{1},m.png,齿轮"]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "gbk"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_any_dialect_are_the_same(table, encoding, mark, end, capsys):
    path = table()
    expected = index_csv(write(path, "\n".join([HEADER, *LINES]).format("normal", "anomaly", "test")))
    text = end.join([HEADER, *LINES, ""]).format("normal", "anomaly", "test").replace(",", mark)
    for changed in (text, text.replace("/", "\\"), f"sep={mark}{end}{text}", text.replace("m.png", '"m.png"')):
        assert index_csv(write(path, changed, encoding)) == expected
    assert {r.class_name for r in expected} == {"齿轮"} and len(expected[1].masks + expected[2].masks) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("good", "bad", "split"),
    [
        ("good", "bad", "val"),
        ("OK", "NG", "Validation"),
        ("0", "1", "valid"),
        ("0.0", "1.0", "VAL"),
        ("False", "True", "val"),
        ("pass", "Fail", "val"),
        ("Normal", "abnormal", "val"),
        ("合格", "不合格", "验证"),
    ],
)
def test_labels_and_splits_may_go_by_other_words(table, good, bad, split):
    path = table()
    records = index_csv(write(path, "\n".join([HEADER, *LINES]).format(good, bad, split)))
    assert [(r.split, r.is_anomalous) for r in records] == [("train", False), ("validation", False), ("test", True)]


@pytest.mark.parametrize(
    "header", ["Image_Path,Set,Is Anomalous,GT,Object", "filename,phase,STATUS,Mask Path,category"]
)
def test_columns_may_go_by_other_names(table, header):
    path = table(*GOOD_LINES)
    expected = index_csv(path)
    assert index_csv(table(*GOOD_LINES, header=header)) == expected


def test_columns_may_be_missing_or_too_many_and_rows_may_end_in_empty_cells(table, capsys):
    [record] = index_csv(table("7,b,a.png,anomaly,,", header="id,operator,path,label"))
    assert (record.class_name, record.split, record.defect, record.masks) == ("parts", "test", "defect", ())
    assert "no column split, so all photos are tested" in capsys.readouterr().err
    with pytest.raises(DatasetError, match="expected one column path, found 2"):
        index_csv(table("a.png,b.png,anomaly", header="path,path,label"))


def test_a_mask_of_a_normal_photo_may_be_black(table, tmp_path, write_photo):
    write_photo(tmp_path / "black.png", value=0)
    [record] = index_csv(table("c.png,test,normal,black.png,gear"))
    assert record.masks == ()


def test_text_of_no_known_coding_is_refused_and_a_guess_is_said(table, capsys):
    path = table()
    text = "path,label,class\na.png,bad,镕\n"  # not of GB2312
    assert index_csv(write(path, text, "gb18030"))[0].class_name == "镕"
    assert "read as GB18030" in capsys.readouterr().err
    path.write_bytes(b"path,label,class\na.png,bad,\xff\xff\n")
    with pytest.raises(DatasetError, match="neither UTF-8, UTF-16 nor GB18030"):
        index_csv(path)


def test_a_dangling_link_is_named(table, tmp_path):
    path = table("x.png,test,normal,,gear")
    (tmp_path / "x.png").symlink_to("/nowhere/x.png")
    with pytest.raises(DatasetError, match=r"line 2: no such file .*x\.png \(it is a link to what is not there\)"):
        index_csv(path)


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
        ("c.png,train,-1,,gear", r"line 3: label '-1'; expected normal or anomaly"),
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
