"""Indexes photos that a CSV table lists: `path,split,label,mask,class`, one line a photo."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.records import GOOD, DatasetError, ImageRecord, choose_classes, first_offenders, in_order
from anomalygpt.datasets.table import Columns, Row, is_anomalous, read_table, split_of

COLUMNS = Columns(("path", "split", "label", "mask", "class"), ("defect",))
UNNAMED_DEFECT = "defect"


def index_csv(table: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo that the table lists, sorted by class, split and path.

    Paths start at the table's folder. split: train, validation or test. label: normal or anomaly. mask: may be empty.
    A column `defect` may name the defect.

    classes: the classes wanted, None for all. Raises DatasetError, which names the lines, for a table of another
    shape, a cell that can't be understood, a mask of a normal photo, a photo that is listed twice, and files that
    are not there.
    """
    table = Path(table)
    if table.is_dir():
        raise DatasetError(f"{table}: this is a folder, a CSV file was expected")
    rows = read_table(table, COLUMNS)
    for column in ("path", "class"):
        _refuse(table, [row for row in rows if not row.cells[column]], f"no {column}")
    marked = [row for row in rows if row.cells["label"] == "normal" and row.cells["mask"]]
    _refuse(table, marked, "a mask of a normal photo")
    times = Counter(row.cells["path"] for row in rows)
    _refuse(table, [row for row in rows if times[row.cells["path"]] > 1], "a photo that is listed twice")
    for column in ("path", "mask"):
        absent = [row for row in rows if row.cells[column] and not (table.parent / row.cells[column]).is_file()]
        _refuse(table, absent, "no such file", column)
    chosen = set(choose_classes(table, sorted({row.cells["class"] for row in rows}), classes))
    return in_order(_record(table, row) for row in rows if row.cells["class"] in chosen)


def _refuse(table: Path, rows: Sequence[Row], why: str, column: str = "path") -> None:
    if rows:
        lines = [f"line {row.line} {row.cells[column]}".rstrip() for row in rows]
        raise DatasetError(f"{table}: {why}: {first_offenders(lines)}")


def _record(table: Path, row: Row) -> ImageRecord:
    anomalous = is_anomalous(table, row)
    mask = row.cells["mask"]
    return ImageRecord(
        table.parent / row.cells["path"],
        row.cells["class"],
        split_of(table, row),
        anomalous,
        (row.cells.get("defect") or UNNAMED_DEFECT) if anomalous else GOOD,
        table.parent / mask if mask else None,
    )
