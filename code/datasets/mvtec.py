"""Indexes a tree laid out as MVTec AD is: ``<class>/{train/good,test/<defect>,ground_truth/<defect>}``."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    Split,
    choose_classes,
    in_order,
    list_folders,
    list_images,
    require_folder,
    require_masks,
)

EXPECTED = "expected <class>/train/good, <class>/test/<defect> and <class>/ground_truth/<defect>"


def index_mvtec(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of the tree under ``root``, sorted by class, split and path.

    A defect's mask is ``ground_truth/<defect>/<stem>_mask.<ext>`` or ``<stem>.<ext>``. ``classes`` None takes all.

    Raises:
        DatasetError: a tree of another shape, an unknown class, or a defect without a mask.
    """
    records = walk_tree(root, classes, "an MVTec", EXPECTED, ("train",), masks_by_stem)
    require_masks(Path(root), records, "mask ground_truth/<defect>/<stem>_mask.png")
    return records


def walk_tree(
    root: Path,
    classes: Sequence[str] | None,
    kind: str,
    expected: str,
    good_splits: Sequence[Split],
    find_masks: Callable[[Path], dict[str, Path]],
    mask_reader: Callable[[Path], Image.Image] | None = None,
) -> list[ImageRecord]:
    """Every photo ``<class>/<split>/good/*`` and ``<class>/test/<defect>/*``, sorted by class, split and path.

    Args:
        classes: the classes wanted, None for all.
        kind: of the tree, with its article, and ``expected``, its layout: for error messages.
        good_splits: the splits that must have normal photos.
        find_masks: from a folder ``<class>/ground_truth/<defect>`` to its masks, by the stem of their photo.
        mask_reader: of the records' masks.

    Raises:
        DatasetError: a tree of another shape, or an unknown class.
    """
    root = require_folder(root)
    if _is_class(root):
        raise DatasetError(f"{root}: this is one class of {kind} tree; give its parent folder {root.parent}")
    found = [folder.name for folder in list_folders(root) if _is_class(folder)]
    if not found:
        raise DatasetError(f"{root}: no class folder; {expected}")
    records: list[ImageRecord] = []
    for name in choose_classes(root, found, classes):
        groups: list[tuple[Split, str]] = [(split, GOOD) for split in good_splits]
        groups += [("test", folder.name) for folder in list_folders(root / name / "test")]
        photos = {group: list_images(root.joinpath(name, *group)) for group in groups}
        for split in good_splits:
            if not photos[split, GOOD]:
                raise DatasetError(f"{root / name / split / GOOD}: no images; {expected}")
        if not any(images for (split, _), images in photos.items() if split == "test"):
            raise DatasetError(f"{root / name / 'test'}: no images; {expected}")
        for (split, defect), images in photos.items():
            anomalous = defect != GOOD
            masks = find_masks(root / name / "ground_truth" / defect) if anomalous else {}
            reader = mask_reader if anomalous else None
            records += [ImageRecord(i, name, split, anomalous, defect, masks.get(i.stem), reader) for i in images]
    return in_order(records)


def _is_class(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """The masks in ``folder`` by the stem of their photo; ``<stem>_mask`` takes precedence over ``<stem>``."""
    masks = list_images(folder)
    by_stem = {mask.stem: mask for mask in masks}
    return by_stem | {mask.stem.removesuffix("_mask"): mask for mask in masks if mask.stem.endswith("_mask")}
