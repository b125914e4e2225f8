"""Indexes a user's own parts: a folder of good photos beside folders of defects, with or without masks."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.datasets.class_info import ClassInfo, read_class_infos
from anomalygpt.datasets.mvtec import masks_by_stem
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

CLASS_FILE = "dataset.yaml"
GOOD_TEST = "good_test"
MASK_FOLDERS = ("masks", "ground_truth")
EXPECTED = "expected good/ with normal photos, one folder a defect, optional good_test/ and masks/"


def index_folder(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of one class (``root`` holds ``good/``) or of a folder of such classes, by class, split and path.

    ``good/`` becomes the train split; ``good_test/`` and every other folder of photos become the test split, where a
    folder's name is the defect. Masks are optional: ``masks/<defect>/<stem>_mask.<ext>``, without ``<defect>/`` or
    ``_mask`` if you like, and in ``ground_truth/`` as well as ``masks/``.

    Args:
        classes: the classes wanted, None for all.

    Raises:
        DatasetError: a tree of another shape, an unknown class, a mask that belongs to no photo, or a flat mask whose
            stem occurs under two defects.
    """
    folders = class_folders(root)
    chosen = choose_classes(Path(root), list(folders), classes)
    return [record for name in chosen for record in _index_class(folders[name])]


def class_folders(root: Path) -> dict[str, Path]:
    """The classes' folders by name: ``root`` itself when it holds ``good/``, else those of its folders that do.

    Raises:
        DatasetError: there is none.
    """
    root = require_folder(root)
    if (root / "train").is_dir():
        raise DatasetError(f"{root}: this looks like a class in MVTec's layout; read its parent as an MVTec tree")
    if (root / GOOD).is_dir():
        return {root.resolve().name: root.resolve()}
    folders = {folder.name: folder for folder in list_folders(root) if (folder / GOOD).is_dir()}
    if not folders:
        raise DatasetError(f"{root}: no folder {GOOD}/ here or in a class folder; {EXPECTED}")
    return folders


def folder_infos(root: Path) -> dict[str, ClassInfo]:
    """What ``dataset.yaml`` in ``root`` says about its classes; empty where there is no such file.

    Raises:
        DatasetError: the file is wrong, or names a class that does not exist.
    """
    path = Path(root) / CLASS_FILE
    if not path.is_file():
        return {}
    infos = read_class_infos(path)
    choose_classes(path, list(class_folders(root)), list(infos))
    return infos


def _index_class(folder: Path) -> list[ImageRecord]:
    name = folder.name
    train = [ImageRecord(image, name, "train", False, GOOD, None) for image in list_images(folder / GOOD)]
    if not train:
        raise DatasetError(f"{folder / GOOD}: no images; {EXPECTED}")
    normal = [ImageRecord(image, name, "test", False, GOOD, None) for image in list_images(folder / GOOD_TEST)]
    defects = [sub for sub in list_folders(folder) if sub.name not in (GOOD, GOOD_TEST, *MASK_FOLDERS)]
    photos = [(image, defect.name) for defect in defects for image in list_images(defect)]
    masks = _match_masks(folder, photos)
    anomalous = [ImageRecord(image, name, "test", True, defect, masks.get(image)) for image, defect in photos]
    return train + sorted(normal + anomalous, key=lambda record: record.image)


def _match_masks(folder: Path, photos: list[tuple[Path, str]]) -> dict[Path, Path]:
    """The mask of each photo that has one, from the mask folder's sub-folders first, then from the folder itself."""
    matched: dict[Path, Path] = {}
    stems = Counter(image.stem for image, _ in photos)
    for mask_folder in (folder / name for name in MASK_FOLDERS):
        flat = masks_by_stem(mask_folder)
        ambiguous = sorted(stem for stem in flat if stems[stem] > 1)
        if ambiguous:
            raise DatasetError(
                f"{mask_folder}: {first_offenders(ambiguous)} names photos of several defects; "
                f"put the masks in {mask_folder.name}/<defect>/"
            )
        of_defect = {defect: masks_by_stem(mask_folder / defect) for defect in {name for _, name in photos}}
        for image, defect in photos:
            mask = of_defect[defect].get(image.stem) or flat.get(image.stem)
            if mask is not None:
                matched.setdefault(image, mask)
        # A misspelt mask would silently turn a marked defect into an unmarked one.
        folders = [mask_folder, *(sub for sub in list_folders(mask_folder) if sub.name != GOOD)]
        present = [mask for sub in folders for mask in list_images(sub)]
        used = set(matched.values())
        orphans = [mask.relative_to(mask_folder) for mask in present if mask not in used]
        if orphans:
            raise DatasetError(
                f"{mask_folder}: {len(orphans)} masks match no photo: {first_offenders(orphans)}; "
                "expected <stem>_mask.png"
            )
    return matched
