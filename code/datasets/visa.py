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
    require_masks,
)

SPLIT_TABLE = Path("split_csv", "1cls.csv")
SPLIT_COLUMNS = ("object", "split", "label", "image", "mask")
KIND_TABLE = "image_anno.csv"
KIND_COLUMNS = ("image", "label", "mask")
UNNAMED_KIND = "anomaly"
EXPECTED = f"expected {SPLIT_TABLE.as_posix()} beside <class>/Data/Images and <class>/Data/Masks"


def index_visa(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the official one-class split, sorted by class, split and path.

    A photo's split is the table's own: train holds normal photos only, and no test photo is moved to another split. A
    defect's name is what ``<class>/image_anno.csv`` says, several kinds with commas, or ``anomaly`` where there is no
    such table. Masks hold 0 and 255, 0 and 1, or small numbers of defects.

    Args:
        classes: the classes wanted, None for all.

    Raises:
        DatasetError: a tree of another shape, an unknown class, a row with an unknown value, a defect without a mask,
            or missing files.
    """
    root = require_folder(root)
    table = root / SPLIT_TABLE
    if not table.is_file():
        raise DatasetError(_no_table(root))
    rows = read_table(table, SPLIT_COLUMNS)
    chosen = choose_classes(root, sorted({row["object"] for row in rows}), classes)
    kinds = {name: _kinds(root / name / KIND_TABLE) for name in chosen}
    records = []
    for row in rows:
        name, image = row["object"], row["image"]
        if name in kinds:
            kind = kinds[name].get(Path(image).name, UNNAMED_KIND)
            records.append(to_record(table, row, root, image, name, kind))
    require_masks(root, records, f"mask in {SPLIT_TABLE.as_posix()}")
    return in_order(records)


def _no_table(root: Path) -> str:
    if any((folder / "train").is_dir() for folder in list_folders(root)):
        return f"{root}: no {SPLIT_TABLE.as_posix()}; the classes are in MVTec's layout, read it as kind: mvtec"
    if (root / "Data").is_dir():
        return f"{root}: this is one class of VisA; give its parent folder {root.parent}"
    return f"{root}: no {SPLIT_TABLE.as_posix()}; {EXPECTED}"


def _kinds(table: Path) -> dict[str, str]:
    """The kinds of defect of each photo under ``Anomaly/``, by the photo's file name."""
    if not table.is_file():
        return {}
    rows = read_table(table, KIND_COLUMNS)
    return {Path(row["image"]).name: row["label"] for row in rows if Path(row["image"]).parent.name == "Anomaly"}
