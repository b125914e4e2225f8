"""Indexes a tree laid out as MVTec AD is: `<class>/{train/good,test/<defect>,ground_truth/<defect>}`."""

from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    choose_classes,
    first_offenders,
    list_folders,
    list_images,
    require_folder,
)

EXPECTED = "expected <class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"


def index_mvtec(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the tree under `root`, sorted by class, split and path.

    classes: the classes wanted, None for all. A defect's mask is `ground_truth/<defect>/<stem>_mask.<ext>` or
    `<stem>.<ext>`. Raises DatasetError for a tree of another shape, an unknown class, or a defect without a
    mask.
    """
    root = require_folder(root)
    if (root / "train").is_dir() or (root / "test").is_dir():
        raise DatasetError(f"{root}: this is one class of an MVTec tree; give its parent folder {root.parent}")
    found = [folder.name for folder in list_folders(root) if (folder / "train").is_dir() or (folder / "test").is_dir()]
    if not found:
        raise DatasetError(f"{root}: no class folder; {EXPECTED}")
    records: list[ImageRecord] = []
    for name in choose_classes(root, found, classes):
        records += _train_records(root / name) + _test_records(root / name)
    _require_masks(root, records)
    return records


def _train_records(folder: Path) -> list[ImageRecord]:
    good = folder / "train" / GOOD
    images = list_images(good)
    if not images:
        raise DatasetError(f"{good}: no images; {EXPECTED}")
    return [ImageRecord(image, folder.name, "train", False, GOOD, None) for image in images]


def _test_records(folder: Path) -> list[ImageRecord]:
    records: list[ImageRecord] = []
    for defect in list_folders(folder / "test"):
        masks = masks_by_stem(folder / "ground_truth" / defect.name)
        anomalous = defect.name != GOOD
        for image in list_images(defect):
            mask = masks.get(image.stem) if anomalous else None
            records.append(ImageRecord(image, folder.name, "test", anomalous, defect.name, mask))
    if not records:
        raise DatasetError(f"{folder / 'test'}: no images; {EXPECTED}")
    return records


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """The masks in `folder` by the stem of their photo; `<stem>_mask` wins over `<stem>`."""
    masks = list_images(folder)
    by_stem = {mask.stem: mask for mask in masks}
    by_stem.update({mask.stem.removesuffix("_mask"): mask for mask in masks if mask.stem.endswith("_mask")})
    return by_stem


def _require_masks(root: Path, records: Sequence[ImageRecord]) -> None:
    without = [record.image.relative_to(root) for record in records if record.is_anomalous and record.mask is None]
    if without:
        raise DatasetError(
            f"{root}: {len(without)} defect photos have no mask ground_truth/<defect>/<stem>_mask.png: "
            f"{first_offenders(without)}"
        )
