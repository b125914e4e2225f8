"""Indexes folders of photos by what they are called: MVTec AD's layout, and a good folder beside folders of defects."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from anomalygpt.datasets.records import (
    GOOD,
    SPLITS,
    DatasetError,
    ImageRecord,
    Split,
    choose_classes,
    list_folders,
    list_images,
)
from anomalygpt.errors import first_offenders, reading_warning
from anomalygpt.files import read_yaml

EXPECTED = "expected <class>/train/good, test/<defect> and ground_truth/<defect>, or <class>/good, <defect> and masks"


@cache
def names() -> dict[str, Any]:
    """The content of names.yaml; lists of names as sets of their plain forms."""
    table = read_yaml(Path(__file__).with_name("names.yaml"))
    columns = {column: [plain(name) for name in aliases] for column, aliases in table.pop("columns").items()}
    words = table.pop("mask_words")
    return {"columns": columns, "mask_words": words} | {key: {*map(plain, values)} for key, values in table.items()}


def plain(name: str) -> str:
    """A name in lower case, without anything but letters and digits; of -1 the sign stays."""
    return re.sub(r"(?!^-\d)[\W_]+", "", name.casefold())


def is_called(name: str, what: str) -> bool:
    """Whether names.yaml lists a name under ``what``."""
    return not names()[what].isdisjoint((plain(name), plain(name).rstrip("0123456789")))  # good2


def split_called(name: str) -> Split | None:
    """The split that a name stands for, if any."""
    return next((split for split in SPLITS if is_called(name, split)), None)


class Group(NamedTuple):
    """A folder of photos of one kind; ``defect`` is the folder's own name, or ``good``."""

    folder: Path
    split: Split
    defect: str


def index_tree(root: Path, classes: Sequence[str] | None = None) -> list[ImageRecord]:
    """Every photo of one class or of a folder of classes, sorted; data/README.md shows both. May raise DatasetError."""
    folders, records = class_folders(root), []
    for name in choose_classes(root, list(folders), classes):
        if not (own := _records(name, *_groups(folders[name]))):
            raise DatasetError(f"{folders[name]}: no images; {EXPECTED}")
        records += own
    return sorted(records)


def index_pair(good: Path, bad: Path, masks: Path | None = None, references: int = 0) -> list[ImageRecord]:
    """The photos of two folders as a class called as the folder above them; ``masks`` of ``bad`` may also lie there.

    The first ``references`` good photos are the train split, all others are tested.
    """
    groups = [Group(good, "test", GOOD), Group(bad, "test", bad.resolve().name)]
    records = _records(good.resolve().parent.name, groups, [masks] if masks else [])
    for group in groups:
        if not any(record.image.parent == group.folder for record in records):
            raise DatasetError(f"{group.folder}: no images")
    train = [record for record in records if not record.is_anomalous][:references]
    return sorted(replace(record, split="train") if record in train else record for record in records)


def class_folders(root: Path) -> dict[str, Path]:
    """The classes' folders by name: ``root`` itself when it is one, else those of its folders that are; never none."""
    if _is_class(root):
        return {root.resolve().name: root.resolve()}
    subs = list_folders(root)
    folders = {sub.name: sub for sub in subs if _is_class(sub)}
    if not folders:
        raise DatasetError(f"{root}: no class folder; {EXPECTED}")
    for sub in subs:
        is_other = sub.name not in folders and not is_called(sub.name, "results")
        if is_other and any(map(list_images, (sub, *list_folders(sub)))):
            reading_warning(f"{sub}: photos that are not read, for it is no class; {EXPECTED}")
    return folders


def _is_class(folder: Path) -> bool:
    return any(split_called(sub.name) or is_called(sub.name, "good") for sub in list_folders(folder))


def _records(name: str, groups: Sequence[Group], mask_folders: list[Path]) -> list[ImageRecord]:
    photos = {group: list_images(group.folder) for group in groups}
    for sub in (sub for group in groups for sub in list_folders(group.folder)):
        if is_called(sub.name, "masks"):
            mask_folders.append(sub)
        elif images := list_images(sub):
            reading_warning(f"{sub}: {len(images)} photos that are not read; expected them in {sub.parent}")
    masks, besides = _match_masks(photos, mask_folders)
    return [
        ImageRecord(image, name, group.split, group.defect != GOOD, group.defect, masks.get(image, ()))
        for group, images in photos.items()
        for image in images
        if image not in besides
    ]


def _groups(folder: Path) -> tuple[list[Group], list[Path]]:
    """The folders of photos, and those of masks, in a class's folder."""
    subs = list_folders(folder)
    splits = {sub: split for sub in subs if (split := split_called(sub.name))}
    groups: list[Group] = []
    mask_folders: list[Path] = []
    for sub in subs if not splits else [inner for outer in splits for inner in list_folders(outer)]:
        split = splits.get(sub.parent)
        if is_called(sub.name, "masks") or any((sub.parent / each).is_dir() for each in _without_words(sub.name)):
            mask_folders.append(sub)
        elif is_called(sub.name, "perhaps_masks"):
            raise DatasetError(f"{sub}: masks or a kind of defect? rename it masks, or as the defect is called")
        elif is_called(sub.name, "results"):
            reading_warning(f"{sub}: taken for results of a program and not read; rename it if it is a kind of defect")
        elif is_called(sub.name, "good"):
            groups.append(Group(sub, split or "train", GOOD))
        elif split is None and is_called(sub.name, "good_test"):
            groups.append(Group(sub, "test", GOOD))
        elif split in (None, "test") or is_called(sub.name, "bad"):
            groups.append(Group(sub, split or "test", sub.name))
        else:
            raise DatasetError(f"{sub}: expected good photos to train on; rename it {GOOD} if it means good photos")
    for sub in (folder, *subs) if splits else (folder,):
        if is_called(sub.name, "masks") or is_called(sub.name, "perhaps_masks"):
            mask_folders.append(sub)
        elif list_images(sub) and not is_called(sub.name, "hidden"):
            reading_warning(f"{sub}: photos that are not read; {EXPECTED}")
    tested = {group.folder.name: group.defect for group in groups if group.split == "test"}
    if splits and tested and GOOD not in tested.values():
        said = f"none of the test folders ({first_offenders(tested)}) means good photos; all count as defects"
        reading_warning(f"{folder}: {said}")
    return groups, mask_folders


def _match_masks(
    photos: dict[Group, list[Path]], mask_folders: Sequence[Path]
) -> tuple[dict[Path, tuple[Path, ...]], dict[Path, str]]:
    """The masks of each defect photo, and the masks that lie among photos with their kind of defect."""
    # By a defect's plain name, None for every defect, "" for good photos; and by stem or full name.
    owners: defaultdict[tuple[str | None, str], list[Path]] = defaultdict(list)
    besides: dict[Path, str] = {}
    for group, images in photos.items():
        stems = {image.stem.casefold() for image in images}
        kind = plain(group.folder.name) if group.defect != GOOD else ""
        besides |= {i: kind for i in images if stems.intersection(_without_words(i.stem))}
        places = (kind, None) if kind else ("",)
        for image, place in product((image for image in images if image not in besides), places):
            owners[place, image.stem.casefold()].append(image)
            owners[place, image.name.casefold()].append(image)
    found: defaultdict[Path, list[Path]] = defaultdict(list)
    orphans: list[tuple[str | None, Path]] = []
    inside = _masks_in(mask_folders, {kind for kind, _ in owners if kind})
    for place, mask, stem in (*inside, *((kind, mask, mask.stem) for mask, kind in besides.items() if kind)):
        named = [stem.casefold(), *_without_words(stem), _without_number(stem.casefold())]
        own = next((owners[place, s] for s in named if (place, s) in owners), [])
        if len({owner.parent for owner in own}) == 1:  # 000.png and 000.jpg may have a mask each, of the same full name
            own = [owner for owner in own if owner.name.casefold() == mask.name.casefold()] or own
        if len(own) > 1:
            several = first_offenders(f"{owner.parent.name}/{owner.name}" for owner in own)
            advice = f"put it in {mask.parent}/<defect>/, or give photos of one defect different names"
            raise DatasetError(f"{mask}: may be the mask of {several}; {advice}")
        if own:
            found[own[0]].append(mask)
        elif place or not any(("", s) in owners for s in named):  # of a flat folder some masks may be of good photos
            orphans.append((place, mask))
    unmarked = {place for (place, _), own in owners.items() if place != "" and not found.keys() >= {*own}}
    serious = [mask for place, mask in orphans if place in unmarked]
    if listed := serious or [mask for _, mask in orphans]:
        message = f"{listed[0].parent}: {len(listed)} masks match no photo: {first_offenders(m.name for m in listed)}"
        if serious:  # a misspelt mask would silently turn a marked defect into an unmarked one
            raise DatasetError(f"{message}; expected <stem>_mask.png")
        reading_warning(message)
    return {photo: tuple(sorted(masks)) for photo, masks in found.items()}, besides


def _masks_in(folders: Sequence[Path], kinds: set[str]) -> Iterator[tuple[str | None, Path, str]]:
    """(kind of defect if the folder names one, mask, the stem that names its photo) of all masks in mask folders."""
    for folder in folders:
        inside = plain(folder.parent.name)
        own = inside if inside in kinds else None  # test/crack/masks/
        yield from ((own, mask, mask.stem) for mask in list_images(folder))
        for sub in (sub for sub in list_folders(folder) if not is_called(sub.name, "good")):
            kind = plain(sub.name) if plain(sub.name) in kinds else None
            photos = [(mask, sub.name if kind is None else mask.stem) for mask in list_images(sub)]  # masks/000/0.png
            photos += [(mask, deeper.name) for deeper in list_folders(sub) for mask in list_images(deeper)]
            yield from ((kind or own, mask, stem) for mask, stem in photos)


def _without_words(stem: str) -> list[str]:
    """The photos' stems, in lower case, that a mask's names beside one of the words for masks, likeliest first."""
    word = "|".join(names()["mask_words"])
    patterns = (rf"(.+?)[ _.-]+(?:{word})(?:[ _.(-]*\d+\)?)?", rf"(?:{word})[ _.-]+(.+)")
    found = [match[1] for pattern in patterns if (match := re.fullmatch(pattern, stem.casefold()))]
    return [each for left in found for each in (left, _without_number(left))]


def _without_number(stem: str) -> str:
    return re.sub(r"(?<=.)[ _.(-]+\d+\)?$", "", stem)
