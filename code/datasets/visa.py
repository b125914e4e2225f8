"""Indexes VisA as it is published: ``split_csv/1cls.csv`` and one folder per class (Zou et al., ECCV 2022)."""

from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.csv_table import read_table, to_record
from anomalygpt.datasets.records import (
    DatasetError,
    ImageRecord,
    choose_classes,
    in_order,
    list_folders,
    require_folder,
)

SPLIT_TABLE = Path("split_csv", "1cls.csv")
EXPECTED = f"expected {SPLIT_TABLE.as_posix()} beside <class>/Data/Images and <class>/Data/Masks"


def index_visa(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the official one-class split, sorted by class, split and path.

    A photo's split is the table's own: train holds normal photos only, and no test photo is moved to another split. A
    defect's name comes from ``<class>/image_anno.csv``, several kinds with commas, or ``anomaly`` where there is no
    such table. Masks hold 0 and 255, 0 and 1, or small numbers of defects.

    Raises:
        DatasetError: a tree of another shape, an unknown class, a row with an unknown value, or missing files.
    """
    root = require_folder(root)
    table = root / SPLIT_TABLE
    if not table.is_file():
        if any((folder / "train").is_dir() for folder in list_folders(root)):
            hint = "the classes are in MVTec's layout, read it as kind: mvtec"
        elif (root / "Data").is_dir():
            hint = f"this is one class of VisA; give its parent folder {root.parent}"
        else:
            hint = EXPECTED
        raise DatasetError(f"{root}: no {SPLIT_TABLE.as_posix()}; {hint}")
    columns = ("path", "split", "label", "mask", "class")
    rows = read_table(table, columns, columns)
    chosen = choose_classes(root, sorted({row["class"] for row in rows}), classes)
    kinds: dict[str, str] = {}  # by the defect photo's path
    for listing in (root / name / "image_anno.csv" for name in chosen):
        if listing.is_file():
            kinds |= {row["path"]: row["label"] for row in read_table(listing, ("path", "label"), ("path", "label"))}
    return in_order(
        to_record(table, row, root, row["class"], kinds.get(row["path"], "anomaly"))
        for row in rows
        if row["class"] in chosen
    )
