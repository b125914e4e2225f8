"""Indexes VisA as it is published: `split_csv/1cls.csv` and one folder a class (Zou et al., ECCV 2022)."""

from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    choose_classes,
    first_offenders,
    in_order,
    list_folders,
    require_files,
    require_folder,
)
from anomalygpt.datasets.table import Columns, Row, is_anomalous, read_table, split_of

SPLIT_TABLE = Path("split_csv", "1cls.csv")
SPLIT_COLUMNS = Columns(("object", "split", "label", "image", "mask"))
KIND_TABLE = "image_anno.csv"
KIND_COLUMNS = Columns(("image", "label", "mask"))
UNNAMED_KIND = "anomaly"
EXPECTED = f"expected {SPLIT_TABLE.as_posix()} beside <class>/Data/Images and <class>/Data/Masks"


def index_visa(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the official one-class split, sorted by class, split and path.

    A photo's split is the table's own: train holds normal photos only, and nothing of the test split is ever moved
    to another one. A defect's name is what `<class>/image_anno.csv` says, several kinds with commas, or `anomaly`
    where there is no such table. Masks hold 0 and 255, 0 and 1, or small numbers of defects.

    classes: the classes wanted, None for all. Raises DatasetError for a tree of another shape, an unknown class, a
    row that can't be understood, a defect without a mask, and files that are not there.
    """
    root = require_folder(root)
    table = root / SPLIT_TABLE
    if not table.is_file():
        raise DatasetError(_no_table(root))
    rows = read_table(table, SPLIT_COLUMNS)
    chosen = choose_classes(root, sorted({row.cells["object"] for row in rows}), classes)
    kinds = {name: _kinds(root / name / KIND_TABLE) for name in chosen}
    records = [_record(root, table, row, kinds[name]) for row in rows if (name := row.cells["object"]) in kinds]
    without = [record.image.relative_to(root) for record in records if record.is_anomalous and record.mask is None]
    if without:
        raise DatasetError(f"{table}: {len(without)} defect photos have no mask: {first_offenders(without)}")
    require_files(root, records)
    return in_order(records)


def _no_table(root: Path) -> str:
    if any((folder / "train").is_dir() for folder in list_folders(root)):
        return f"{root}: no {SPLIT_TABLE.as_posix()}; the classes lie in MVTec's layout, read it as kind: mvtec"
    if (root / "Data").is_dir():
        return f"{root}: this is one class of VisA; give its parent folder {root.parent}"
    return f"{root}: no {SPLIT_TABLE.as_posix()}; {EXPECTED}"


def _record(root: Path, table: Path, row: Row, kinds: dict[str, str]) -> ImageRecord:
    anomalous = is_anomalous(table, row)
    image, mask = root / row.cells["image"], row.cells["mask"]
    defect = kinds.get(image.name, UNNAMED_KIND) if anomalous else GOOD
    return ImageRecord(
        image,
        row.cells["object"],
        split_of(table, row),
        anomalous,
        defect,
        root / mask if anomalous and mask else None,
    )


def _kinds(table: Path) -> dict[str, str]:
    """The kinds of defect of each photo under `Anomaly/`, by the photo's file name."""
    if not table.is_file():
        return {}
    rows = [row.cells for row in read_table(table, KIND_COLUMNS)]
    return {
        Path(cells["image"]).name: cells["label"] for cells in rows if Path(cells["image"]).parent.name == "Anomaly"
    }
