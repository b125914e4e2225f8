"""Indexes published data sets of other layouts: KolektorSDD and SDD2, DAGM 2007, Real-IAD, CrackForest."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from anomalygpt.datasets.annotations import Annotated, index_annotated
from anomalygpt.datasets.masks import load_mask, read_cracks
from anomalygpt.datasets.photos import decoding
from anomalygpt.datasets.records import DatasetError, ImageRecord, Split, choose_classes, list_folders, list_images
from anomalygpt.datasets.tree import split_called

MASK = re.compile(r"(.+)_(?:GT|label)", re.IGNORECASE)
ITEM = re.compile(r"kos\d+")  # KolektorSDD: a folder per commutator
EXPECTED = "expected kosNN/PartN.jpg and PartN_label.bmp, or train and test with N.png, N_GT.png or Label/N_label.PNG"

# Real-IAD's names of defects (Wang et al., CVPR 2024).
DEFECTS = {"AK": "pit", "BX": "deformation", "CH": "abrasion", "HS": "scratch", "PS": "damage", "QS": "missing parts"}
DEFECTS |= {"YW": "foreign objects", "ZW": "contamination"}


def index_marked(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """KolektorSDD (the first half of its items trains), SDD2 or DAGM 2007: what has a mask that marks some is bad."""
    folders = {root.resolve().name: root} if _splits(root) else {s.name: s for s in list_folders(root) if _splits(s)}
    chosen = choose_classes(root, list(folders), classes)
    records = [record for name in chosen for record in index_annotated(_marked, folders[name], name=name)]
    if not any(record.is_anomalous for record in records):
        raise DatasetError(f"{root}: no photo with a mask that marks something; {EXPECTED}")
    return records


def _marked(root: Path) -> Iterator[Annotated]:
    for folder, split in _splits(root).items():
        images = [image for place in (folder, *list_folders(folder)) for image in list_images(place)]
        masks = {found[1].casefold(): image for image in images if (found := MASK.fullmatch(image.stem))}
        has_masks_beside = any(mask.parent == folder for mask in masks.values())  # not DAGM's, of the bad alone
        for image in (image for image in images if not MASK.fullmatch(image.stem)):
            mask = masks.pop(image.stem.casefold(), None)
            if mask is None and has_masks_beside:
                raise DatasetError(f"{image}: has no mask beside it, other photos have; {EXPECTED}")
            is_bad = mask and load_mask(ImageRecord(image, "", split, True, "defect", (mask,))).getbbox()
            yield image, split, [("defect", ())] if is_bad else [], mask or image
        if masks:
            raise DatasetError(f"{folder}: {len(masks)} masks have no photo: the first is {min(masks.values())}")


def _splits(folder: Path) -> dict[Path, Split]:
    subs = list_folders(folder)
    items = [sub for sub in subs if ITEM.fullmatch(sub.name)]
    if items:
        return {item: "train" if at < len(items) / 2 else "test" for at, item in enumerate(items)}
    return {sub: split for sub in subs if (split := split_called(sub.name))}


def index_real_iad(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Real-IAD by its JSON splits: ``root`` holds ``realiad_jsons`` and ``realiad_1024``, or is a folder of splits."""
    root = root.resolve()
    folders = (root, root / "realiad_jsons", root / "realiad_jsons" / "realiad_jsons")
    tables = next((found for folder in folders if (found := {path.stem: path for path in folder.glob("*.json")})), {})
    sides = [side for above in (root, *root.parents[:2]) for side in above.glob("realiad_[0-9]*")]
    if not tables or not sides:
        raise DatasetError(f"{root}: expected realiad_jsons/<class>.json beside realiad_1024, or those JSON files")
    largest = max(sides, key=lambda side: int(re.sub(r"\D", "", side.name)))
    chosen = choose_classes(root, list(tables), classes)
    readers = {name: partial(_real_iad, tables[name], largest) for name in chosen}
    return [record for name, read in readers.items() for record in index_annotated(read, root, name=name)]


def _real_iad(table: Path, photos: Path, _: Path) -> Iterator[Annotated]:
    with decoding(table, "a split of Real-IAD"):
        content = json.loads(table.read_text(encoding="utf-8"))
        base = photos / content["meta"]["prefix"]
        for name, rows in content.items():
            for row in rows if split_called(name) else ():
                kind = row["anomaly_class"]
                defects = [(DEFECTS.get(kind, kind), ())] if kind != content["meta"]["normal_class"] else []
                yield base / row["image_path"], split_called(name), defects, base / (row["mask_path"] or "")


def _crack_forest(root: Path) -> Iterator[Annotated]:
    """CrackForest (Shi et al., 2016): photos of roads that a MATLAB file marks; all are tested, the others left out."""
    for path in sorted((root / "groundTruth").glob("*.mat")):
        cracked = read_cracks(path).getbbox() is not None
        yield root / "image" / f"{path.stem}.jpg", "test", [("crack", ())] if cracked else [], path


index_crack_forest = partial(index_annotated, _crack_forest, name="pavement")
