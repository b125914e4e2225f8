"""Reads CSV tables of photos, and indexes a user's own: ``path,split,label,mask,class``, one line per photo."""

import csv
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.records import (
    GOOD,
    SPLITS,
    DatasetError,
    ImageRecord,
    choose_classes,
    in_order,
)

COLUMNS = ("path", "split", "label", "mask", "class")
LABELS = ("normal", "anomaly")
UNNAMED_DEFECT = "defect"


def read_table(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file (UTF-8, commas), without empty ones: cells by column, and the row's line as ``line``.

    Raises:
        DatasetError: the file can't be read, has no rows, lacks a column or has an unknown one, or a row has too many
            or too few cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a CSV table in UTF-8 ({error})") from error
    if not set(required) <= set(header) <= {*required, *optional} or len(set(header)) != len(header):
        raise DatasetError(
            f"{path}: expected a header with the columns {', '.join(required)}"
            + (f" and optionally {', '.join(optional)}" if optional else "")
            + f"; found {', '.join(header) or 'an empty file'}"
        )
    for line, cells in lines:
        if len(cells) != len(header):
            raise DatasetError(f"{path}: line {line} has {len(cells)} cells; expected {len(header)}")
    if not lines:
        raise DatasetError(f"{path}: no rows below the header")
    return [{"line": str(line), **dict(zip(header, map(str.strip, cells), strict=True))} for line, cells in lines]


def to_record(table: Path, row: dict[str, str], root: Path, image: str, class_name: str, defect: str) -> ImageRecord:
    """The record of a row with the columns ``split``, ``label`` and ``mask``, whose paths start at ``root``.

    Raises:
        DatasetError: an unknown split or label, or a missing file; the message names the line.
    """
    where, split, label, mask = f"{table}: line {row['line']}", row["split"], row["label"], row["mask"]
    if label not in LABELS:
        raise DatasetError(f"{where}: label {label!r}; expected {' or '.join(LABELS)}")
    if split not in SPLITS:
        raise DatasetError(f"{where}: split {split!r}; expected {', '.join(SPLITS)}")
    for path in filter(None, (image, mask)):
        if not (root / path).is_file():
            raise DatasetError(f"{where}: no such file {root / path}")
    anomalous = label == "anomaly"
    marked = root / mask if anomalous and mask else None
    return ImageRecord(root / image, class_name, split, anomalous, defect if anomalous else GOOD, marked)


def index_csv(table: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo that the table lists, sorted by class, split and path.

    Paths start at the table's folder. ``split`` is train, validation or test, ``label`` normal or anomaly; ``mask`` may
    be empty; a column ``defect`` may name the defect.

    Args:
        classes: the classes wanted, None for all.

    Raises:
        DatasetError: a table of another shape, a cell with an unknown value, a mask of a normal photo, a photo that is
            listed twice, or a missing file; the message names the line.
    """
    table = Path(table)
    if table.is_dir():
        raise DatasetError(f"{table}: this is a folder, a CSV file was expected")
    rows = read_table(table, COLUMNS, ("defect",))
    seen: set[str] = set()
    for row in rows:
        for wrong, what in (
            (not row["path"], "no path"),
            (not row["class"], "no class"),
            (row["label"] == "normal" and row["mask"], "a mask of a normal photo"),
            (row["path"] in seen, f"{row['path']} is listed twice"),
        ):
            if wrong:
                raise DatasetError(f"{table}: line {row['line']}: {what}")
        seen.add(row["path"])
    chosen = choose_classes(table, sorted({row["class"] for row in rows}), classes)
    return in_order(
        to_record(table, row, table.parent, row["path"], row["class"], row.get("defect") or UNNAMED_DEFECT)
        for row in rows
        if row["class"] in chosen
    )
