"""Indexes photos that a table lists: a user's own, with the columns of names.yaml in any dialect, and VisA's."""

import csv
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.photos import decoding
from anomalygpt.datasets.records import GOOD, SPLITS, DatasetError, ImageRecord, choose_classes
from anomalygpt.datasets.tree import is_called, names, plain, split_called
from anomalygpt.errors import reading_warning

VISA_TABLE = Path("split_csv", "1cls.csv")

Row = dict[str, str]  # cells by the name of their column in names.yaml, and the number of the line


def index_csv(table: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo that the table lists, sorted by class, split and path; :class:`DatasetError` names a wrong line."""
    if table.is_dir():
        raise DatasetError(f"{table}: this is a folder, a CSV file was expected")
    rows = _read_table(table, ("path", "label"))
    if "split" not in rows[0]:
        reading_warning(f"{table}: no column split, so all photos are tested and none is a reference")
    return _records(table, table.parent, [{"class": table.stem, "split": "test"} | row for row in rows], classes)


def index_visa(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """VisA (Zou et al., ECCV 2022) in its official one-class split; ``<class>/image_anno.csv`` names defects."""
    table = root / VISA_TABLE
    if not table.is_file():
        raise DatasetError(f"{root}: no {VISA_TABLE.as_posix()}; expected it beside <class>/Data (kind: visa)")
    rows = _read_table(table, ("path", "split", "label", "mask", "class"))
    listings = {root / row["class"] / "image_anno.csv" for row in rows}
    listed = [row for path in listings if path.is_file() for row in _read_table(path, ("path", "label"))]
    kinds = {row["path"]: row["label"] for row in listed}
    return _records(table, root, [row | {"defect": kinds.get(row["path"], "anomaly")} for row in rows], classes)


def _read_table(path: Path, required: Sequence[str]) -> list[Row]:
    """The rows of a table, without empty ones and unknown columns."""
    with decoding(path, "a CSV table"):
        lines = _lines(path.read_bytes(), path)
        # The delimiter by which most columns of the header are known.
        first = next((line for line in lines if line.strip()), "")
        known = set().union(*names()["columns"].values())
        delimiter = max(",;\t|", key=lambda mark: sum(plain(cell) in known for cell in first.split(mark)))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    place = _columns(header, path)
    if not {*required} <= {*place}:
        found = ", ".join(header) or "an empty file"
        raise DatasetError(f"{path}: expected a header with the columns {', '.join(required)}; found {found}")
    if len(rows) == 1:
        raise DatasetError(f"{path}: no rows below the header")
    for line, cells in rows[1:]:
        if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):  # empty ones may follow
            raise DatasetError(f"{path}: line {line} has {len(cells)} cells; expected {len(header)}")
    return [{"line": str(n), **{name: cells[at].strip() for name, at in place.items()}} for n, cells in rows[1:]]


def _lines(data: bytes, path: Path) -> list[str]:
    encodings = ["utf-8-sig", "gb2312", "gb18030"]
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif 0 in data[:2]:  # UTF-16 without its mark: of an ASCII letter, one byte is zero
        encodings = ["utf-16-be" if data[0] == 0 else "utf-16-le"]
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            lines = list(io.StringIO(data.decode(encoding), newline=""))
            if encoding == "gb18030":
                reading_warning(f"{path}: read as GB18030; if names come out wrong, save the table as UTF-8")
            return ["\n", *lines[1:]] if lines and lines[0].lower().startswith("sep=") else lines  # Excel's hint
    raise DatasetError(f"{path}: its text is neither UTF-8, UTF-16 nor GB18030; save it as UTF-8")


def _columns(found: Sequence[str], path: Path) -> dict[str, int]:
    """Where each column of names.yaml stands: the first of its names that the header has."""
    header = [plain(name) for name in found]
    place: dict[str, int] = {}
    for column, aliases in names()["columns"].items():
        if free := [alias for alias in aliases if alias in header and header.index(alias) not in place.values()]:
            if header.count(free[0]) > 1:
                raise DatasetError(f"{path}: expected one column {free[0]}, found {header.count(free[0])}")
            place[column] = header.index(free[0])
    return place


def _records(table: Path, root: Path, rows: Sequence[Row], classes: Sequence[str] | None) -> list[ImageRecord]:
    chosen = choose_classes(table, sorted({row["class"] for row in rows} - {""}), classes)
    records: dict[Path, ImageRecord] = {}
    for row in rows:
        where = f"{table}: line {row['line']}"
        if lacking := [column for column in ("path", "class") if not row[column]]:
            raise DatasetError(f"{where}: no {' and no '.join(lacking)}")
        if row["class"] in chosen:
            record = _record(row, root, where)
            if record.image in records:
                raise DatasetError(f"{where}: {row['path']} is listed twice")
            records[record.image] = record
    return sorted(records.values())


def _record(row: Row, root: Path, where: str) -> ImageRecord:
    label, split = row["label"], split_called(row["split"])
    good, bad = (is_called(label, what) or is_called(label, f"{what}_labels") for what in ("good", "bad"))
    if not good and not bad:
        raise DatasetError(f"{where}: label {label!r}; expected normal or anomaly, good or bad, OK or NG, 0 or 1")
    if split is None:
        raise DatasetError(f"{where}: split {row['split']!r}; expected {', '.join(SPLITS)}")
    image, *masks = (_file(root, path, where) for path in filter(None, (row["path"], row.get("mask"))))
    defect = (row.get("defect") or "defect") if bad else GOOD
    record = ImageRecord(image, row["class"], split, bad, defect, tuple(masks))
    if good and masks and load_mask(record).getbbox():
        raise DatasetError(f"{where}: a mask of a normal photo")
    return record if bad else replace(record, masks=())


def _file(root: Path, cell: str, where: str) -> Path:
    for name in (cell, cell.replace("\\", "/")):
        if (root / name).is_file():
            return Path(os.path.normpath(root / name))
    broken = " (it is a link to what is not there)" if (root / cell).is_symlink() else ""
    raise DatasetError(f"{where}: no such file {root / cell}{broken}")
