"""Indexes MVTec LOCO AD: logical and structural anomalies, several masks a photo (Bergmann et al., IJCV 2022)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalygpt.datasets.records import (
    GOOD,
    DatasetError,
    ImageRecord,
    Split,
    choose_classes,
    first_offenders,
    in_order,
    list_folders,
    list_images,
    require_folder,
)
from anomalygpt.datasets.transforms import load_mask

DEFECTS = ("logical_anomalies", "structural_anomalies")
CONFIG = "defects_config.json"
EXPECTED = (
    f"expected <class>/train/{GOOD}, <class>/validation/{GOOD}, <class>/test/<{GOOD}, {', '.join(DEFECTS)}> "
    "and <class>/ground_truth/<defect>/<stem>/NNN.png"
)


@dataclass(frozen=True)
class DefectKind:
    """One kind of defect, and how much of it must be found.

    pixel_value: that marks it in a mask, 1..255. saturation: pixels, or with `relative` the share of the region
    0..1, above which finding more counts no further (the saturated PRO of LOCO's paper).
    """

    name: str
    pixel_value: int
    saturation: float
    relative: bool


@dataclass(frozen=True)
class DefectRegion:
    """One marked region of a photo. pixels: (H, W) bool, the photo's own. needed: pixels that count as all of it."""

    kind: DefectKind
    pixels: NDArray[np.bool_]
    needed: float


def index_loco(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo, sorted by class, split and path; `validation/good` is the split `validation`.

    A defect photo's mask is its folder `ground_truth/<defect>/<stem>`, whose images count together; `load_mask`
    merges them, `regions` keeps them apart.

    classes: the classes wanted, None for all. Raises DatasetError for a tree of another shape, an unknown class, or
    a defect without masks.
    """
    root = require_folder(root)
    if (root / "train").is_dir() or (root / "test").is_dir():
        raise DatasetError(f"{root}: this is one class of a LOCO tree; give its parent folder {root.parent}")
    found = [folder.name for folder in list_folders(root) if (folder / "train").is_dir() or (folder / "test").is_dir()]
    if not found:
        raise DatasetError(f"{root}: no class folder; {EXPECTED}")
    records: list[ImageRecord] = []
    for name in choose_classes(root, found, classes):
        records += _class_records(root / name)
    without = [record.image.relative_to(root) for record in records if record.is_anomalous and record.mask is None]
    if without:
        raise DatasetError(
            f"{root}: {len(without)} defect photos have no masks ground_truth/<defect>/<stem>/NNN.png: "
            f"{first_offenders(without)}"
        )
    return in_order(records)


def _class_records(folder: Path) -> list[ImageRecord]:
    defects = [sub.name for sub in list_folders(folder / "test") if sub.name != GOOD]
    foreign = [defect for defect in defects if defect not in DEFECTS]
    if foreign:
        raise DatasetError(f"{folder / 'test'}: unknown folders {first_offenders(foreign)}; {EXPECTED}")
    records = [*_normal(folder, "train"), *_normal(folder, "validation"), *_normal(folder, "test")]
    for defect in defects:
        for image in list_images(folder / "test" / defect):
            mask = folder / "ground_truth" / defect / image.stem
            records.append(ImageRecord(image, folder.name, "test", True, defect, mask if list_images(mask) else None))
    return records


def _normal(folder: Path, split: Split) -> list[ImageRecord]:
    images = list_images(folder / split / GOOD)
    if not images:
        raise DatasetError(f"{folder / split / GOOD}: no images; {EXPECTED}")
    return [ImageRecord(image, folder.name, split, False, GOOD, None) for image in images]


def defect_kinds(folder: Path) -> tuple[DefectKind, ...]:
    """The kinds of defect of a class, from `defects_config.json` in its folder.

    Raises:
        DatasetError: the file is missing or does not hold what it should.
    """
    path = folder / CONFIG
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(
            DefectKind(
                str(entry["defect_name"]),
                int(entry["pixel_value"]),
                float(entry["saturation_threshold"]),
                bool(entry["relative_saturation"]),
            )
            for entry in entries
        )
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; it comes with the data set") from None
    except KeyError as error:
        raise DatasetError(f"{path}: an entry has no {error}") from error
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path}: not a list of kinds of defect ({error})") from error


def regions(record: ImageRecord, kinds: Sequence[DefectKind]) -> tuple[DefectRegion, ...]:
    """The marked regions of a photo, one a mask, in the order of their files; none for a normal photo.

    kinds: of the record's class, as `defect_kinds` gives them. Raises DatasetError for a mask that is empty or whose
    value belongs to no kind.
    """
    by_value = {kind.pixel_value: kind for kind in kinds}
    found = []
    for path in [] if record.mask is None else list_images(record.mask):
        values = np.asarray(load_mask(path).convert("L"))
        kind = by_value.get(int(values.max(initial=0)))
        if kind is None:
            raise DatasetError(f"{path}: value {values.max(initial=0)} is no kind of defect in {CONFIG}")
        pixels = values > 0
        area = float(np.count_nonzero(pixels))
        needed = kind.saturation * area if kind.relative else min(kind.saturation, area)
        found.append(DefectRegion(kind, pixels, needed))
    return tuple(found)
