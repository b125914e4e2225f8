"""Reads tables of photos of any dialect, and indexes a user's own: a line per photo, with the columns of names.yaml."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from anomalygpt.datasets.masks import read_mask
from anomalygpt.datasets.records import GOOD, SPLITS, DatasetError, ImageRecord, choose_classes, in_order
from anomalygpt.datasets.tree import is_called, names, plain, split_called
from anomalygpt.errors import reading_warning

DELIMITERS = ",;\t|"


def read_table(path: Path, required: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table, without empty ones: cells by the name of their column in names.yaml, and ``line``.

    Commas, semicolons, tabs or bars; UTF-8, UTF-16 or GB18030; columns in any order, others than ``columns`` are left
    out.

    Raises:
        DatasetError: the file can't be read, has no rows or lacks a required column, or a row has too many or too few
            cells.
    """
    try:
        lines = _lines(path.read_bytes(), path)
        reader = csv.reader(lines, delimiter=_delimiter(lines)[1], strict=True)
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a CSV table ({error})") from error
    names_found = [cell.strip() for cell in rows[0][1]] if rows else []
    place = _columns(names_found, columns, path)
    if not {*required} <= {*place}:
        found = ", ".join(names_found) or "an empty file"
        raise DatasetError(f"{path}: expected a header with the columns {', '.join(required)}; found {found}")
    if len(rows) == 1:
        raise DatasetError(f"{path}: no rows below the header")
    for line, cells in rows[1:]:
        while len(cells) > len(names_found) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(names_found):
            raise DatasetError(f"{path}: line {line} has {len(cells)} cells; expected {len(names_found)}")
    return [{"line": str(n), **{name: cells[at].strip() for name, at in place.items()}} for n, cells in rows[1:]]


def _lines(data: bytes, path: Path) -> list[str]:
    """The lines of a file's text, in the encoding in which most columns are known; UTF-8 first."""
    encodings: tuple[str, ...] = ("utf-8-sig", "gb2312", "gb18030")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ("utf-16",)
    elif 0 in data[:2]:  # UTF-16 without its mark: of an ASCII letter, one byte is zero
        encodings = ("utf-16-be" if data[0] == 0 else "utf-16-le",)
    found: list[tuple[int, str, list[str]]] = []
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            lines = list(io.StringIO(data.decode(encoding), newline=""))
            if lines and lines[0].lower().startswith("sep="):  # Excel's hint
                lines[0] = "\n"
            found.append((_delimiter(lines)[0], encoding, lines))
    if not found:
        raise DatasetError(f"{path}: its text is neither UTF-8, UTF-16 nor GB18030; save it as UTF-8")
    _, encoding, lines = max(found, key=lambda one: one[0])
    if encoding == "gb18030":
        reading_warning(f"{path}: read as GB18030; if names come out wrong, save the table as UTF-8")
    return lines


def _delimiter(lines: Sequence[str]) -> tuple[int, str]:
    """The delimiter by which most columns of the header are known, and how many are."""
    header = next((line for line in lines if line.strip()), "")
    known = {alias for aliases in names()["columns"].values() for alias in aliases}
    counts = {mark: sum(plain(cell) in known for cell in header.split(mark)) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    return counts[best], best


def _columns(found: Sequence[str], wanted: Sequence[str], path: Path) -> dict[str, int]:
    """Where each wanted column stands: the first of its names that the header has, the usual one first."""
    header = [plain(name) for name in found]
    place: dict[str, int] = {}
    for column in wanted:
        for alias in names()["columns"][column]:
            if column not in place and alias in header and header.index(alias) not in place.values():
                if header.count(alias) > 1:
                    raise DatasetError(f"{path}: expected one column {alias}, found {header.count(alias)}")
                place[column] = header.index(alias)
    return place


def to_record(table: Path, row: dict[str, str], root: Path, class_name: str, defect: str) -> ImageRecord:
    """The record of a row of a table, whose paths start at ``root``.

    Raises:
        DatasetError: an unknown split or label, a missing file, or a mask that marks something on a normal photo; the
            message names the line.
    """
    where, label = f"{table}: line {row['line']}", row["label"]
    good, bad = (is_called(label, what) or is_called(label, f"{what}_labels") for what in ("good", "bad"))
    if not good and not bad:
        raise DatasetError(f"{where}: label {label!r}; expected normal or anomaly, good or bad, OK or NG, 0 or 1")
    split = split_called(row.get("split", "test"))
    if split is None:
        raise DatasetError(f"{where}: split {row['split']!r}; expected {', '.join(SPLITS)}")
    image, *masks = (_file(root, path, where) for path in filter(None, (row["path"], row.get("mask"))))
    record = ImageRecord(image, class_name, split, bad, defect if bad else GOOD, tuple(masks))
    if good and masks:
        if np.asarray(read_mask(record)[0]).any():
            raise DatasetError(f"{where}: a mask of a normal photo")
        return ImageRecord(image, class_name, split, False, GOOD)
    return record


def _file(root: Path, cell: str, where: str) -> Path:
    """A cell's path; backslashes are tried as slashes, too."""
    for name in (cell, cell.replace("\\", "/")):
        if (root / name).is_file():
            return Path(os.path.normpath(root / name))
    broken = " (it is a link to what is not there)" if (root / cell).is_symlink() else ""
    raise DatasetError(f"{where}: no such file {root / cell}{broken}")


def index_csv(table: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo that the table lists, sorted by class, split and path.

    Paths start at the table's folder. ``label`` says good or bad in any of the words of names.yaml. Without a column
    ``split`` all photos are tested, without ``class`` the table's name is their class; ``mask`` and ``defect`` may be
    missing or empty.

    Raises:
        DatasetError: a table without paths or labels, a cell with an unknown value, a mask of a normal photo, a photo
            that is listed twice, or a missing file; the message names the line.
    """
    table = Path(table)
    if table.is_dir():
        raise DatasetError(f"{table}: this is a folder, a CSV file was expected")
    rows = read_table(table, ("path", "label"), ("path", "split", "label", "mask", "class", "defect"))
    if "split" not in rows[0]:
        reading_warning(f"{table}: no column split, so all photos are tested and none is a reference")
    for row in rows:
        for column in {"path", "class"} & {*row}:
            if not row[column]:
                raise DatasetError(f"{table}: line {row['line']}: no {column}")
    found = sorted({row.get("class", table.stem) for row in rows})
    return in_order(_records(table, rows, choose_classes(table, found, classes)))


def _records(table: Path, rows: Sequence[dict[str, str]], chosen: Sequence[str]) -> Iterator[ImageRecord]:
    listed: set[Path] = set()
    for row in rows:
        class_name = row.get("class", table.stem)
        if class_name in chosen:
            record = to_record(table, row, table.parent, class_name, row.get("defect") or "defect")
            if record.image in listed:
                raise DatasetError(f"{table}: line {row['line']}: {row['path']} is listed twice")
            listed.add(record.image)
            yield record
