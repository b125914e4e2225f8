"""Indexes a tree laid out as MVTec AD is: ``<class>/{train/good,test/<defect>,ground_truth/<defect>}``."""

from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    Split,
    choose_classes,
    list_folders,
    list_images,
    require_folder,
    require_masks,
)

EXPECTED = "expected <class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"


def index_mvtec(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the tree under ``root``, sorted by class, split and path.

    A defect's mask is ``ground_truth/<defect>/<stem>_mask.<ext>`` or ``<stem>.<ext>``.

    Args:
        classes: the classes wanted, None for all.

    Raises:
        DatasetError: a tree of another shape, an unknown class, or a defect without a mask.
    """
    records: list[ImageRecord] = []
    for folder in chosen_folders(root, classes, "an MVTec", EXPECTED):
        records += good_photos(folder, "train", EXPECTED) + _test_photos(folder)
    require_masks(Path(root), records, "mask ground_truth/<defect>/<stem>_mask.png")
    return records


def chosen_folders(root: Path, classes: Sequence[str] | None, kind: str, expected: str) -> list[Path]:
    """The folders of the wanted classes, which hold ``train`` or ``test``.

    Args:
        kind: of the tree, with its article, and ``expected``, its layout: for error messages.

    Raises:
        DatasetError: there is none, or a wanted class is unknown.
    """
    root = require_folder(root)
    if _is_class(root):
        raise DatasetError(f"{root}: this is one class of {kind} tree; give its parent folder {root.parent}")
    found = [folder.name for folder in list_folders(root) if _is_class(folder)]
    if not found:
        raise DatasetError(f"{root}: no class folder; {expected}")
    return [root / name for name in choose_classes(root, found, classes)]


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def good_photos(folder: Path, split: Split, expected: str) -> list[ImageRecord]:
    """The normal photos of a class's split. Raises :class:`DatasetError` where there are none."""
    images = list_images(folder / split / GOOD)
    if not images:
        raise DatasetError(f"{folder / split / GOOD}: no images; {expected}")
    return [ImageRecord(image, folder.name, split, False, GOOD, None) for image in images]


def _test_photos(folder: Path) -> list[ImageRecord]:
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
    """The masks in ``folder`` by the stem of their photo; ``<stem>_mask`` wins over ``<stem>``."""
    masks = list_images(folder)
    by_stem = {mask.stem: mask for mask in masks}
    by_stem.update({mask.stem.removesuffix("_mask"): mask for mask in masks if mask.stem.endswith("_mask")})
    return by_stem
