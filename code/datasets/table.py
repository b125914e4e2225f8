"""Reads a CSV file with a header, row by row, and knows each row's line."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from anomalygpt.datasets.records import SPLITS, DatasetError, Split, first_offenders

LABELS = {"normal": False, "anomaly": True}


class Row(NamedTuple):
    """One row of a table: its line in the file, and its cells by column, without surrounding white space."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Columns:
    """The columns that a table must have, and those that it may have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def read_table(path: Path, columns: Columns) -> list[Row]:
    """The rows of a CSV file (UTF-8, commas), empty lines left out.

    Raises:
        DatasetError: the file can't be read, a column is missing or unknown, or a row has too many or too few cells.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            _require_columns(path, header, columns)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as a CSV table in UTF-8 ({error})") from error
    uneven = [f"line {line} has {len(cells)}" for line, cells in lines if len(cells) != len(header)]
    if uneven:
        raise DatasetError(f"{path}: expected {len(header)} cells in each row; {first_offenders(uneven)}")
    if not lines:
        raise DatasetError(f"{path}: no rows below the header")
    return [Row(line, dict(zip(header, map(str.strip, cells), strict=True))) for line, cells in lines]


def _require_columns(path: Path, header: Sequence[str], columns: Columns) -> None:
    known = (*columns.required, *columns.optional)
    missing = [column for column in columns.required if column not in header]
    unknown = [column or "(no name)" for column in header if column not in known]
    if missing or unknown or len(set(header)) != len(header):
        raise DatasetError(
            f"{path}: expected a header with the columns {', '.join(columns.required)}"
            + (f" and at will {', '.join(columns.optional)}" if columns.optional else "")
            + f"; found {', '.join(header) or 'an empty file'}"
        )


def split_of(path: Path, row: Row) -> Split:
    """The row's split. Raises DatasetError with the line for an unknown one."""
    for split in SPLITS:
        if row.cells["split"] == split:
            return split
    raise DatasetError(f"{path}: line {row.line}: split {row.cells['split']!r}; expected {', '.join(SPLITS)}")


def is_anomalous(path: Path, row: Row) -> bool:
    """The row's label. Raises DatasetError with the line for an unknown one."""
    label = row.cells["label"]
    if label not in LABELS:
        raise DatasetError(f"{path}: line {row.line}: label {label!r}; expected {' or '.join(LABELS)}")
    return LABELS[label]
