"""What was found on disk, as a table, and what of its masks may not be what was meant."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.records import ImageRecord, first_offenders
from anomalygpt.errors import reading_warning
from anomalygpt.files import sha256

HEADER = ("class", "split", "kind", "photos", "masks", "read as")


def overview(records: Sequence[ImageRecord], *, with_masks: bool = True) -> list[str]:
    """A line per class, split and kind, with the number of photos and of masks and how these were read.

    Every mask is read, unless ``with_masks`` is false, and what looks wrong is a warning. Raises :class:`DatasetError`
    for a mask that can't be read.
    """
    groups: defaultdict[tuple[str, str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        groups[record.class_name, record.split, record.defect].append(record)
    rows, marked = [HEADER], defaultdict[str, list[tuple[float, Path]]](list)
    for (name, split, kind), own in groups.items():
        codings = set()
        marking = [record for record in own if record.masks]
        for record in marking if with_masks else ():
            image = load_mask(record)
            codings.add(image.info["coding"])
            marked[name].append((float(np.mean(np.asarray(image) > 0)), record.masks[0]))
        without = [record.image.name for record in own if record.is_anomalous and not record.masks]
        if with_masks and marking and without:
            said = f"{len(without)} defect photos have no mask ({first_offenders(without)})"
            reading_warning(f"{own[0].image.parent}: {said}; they count in image metrics alone")
        count = str(len(marking)) if marking or without else ""
        rows.append((name, split, kind, str(len(own)), count, ", ".join(sorted(codings))))
    for name, shares in marked.items():
        large = [mask for share, mask in shares if share > 0.5]
        if len(large) * 2 > len(shares):
            said = f"more than half of the photo is marked in {len(large)} of {len(shares)} masks, as in {large[0]}"
            reading_warning(f"{name}: {said}; if defects are black in them, invert them")
        if empty := [mask for share, mask in shares if share == 0]:
            reading_warning(f"{name}: {len(empty)} masks of defect photos mark nothing: {first_offenders(empty)}")
    _warn_of_leaks(records)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if with_masks and not marked and any(record.is_anomalous for record in records):
        lines.append("no defect photo has a mask: image metrics alone")
    return lines


def _warn_of_leaks(records: Sequence[ImageRecord]) -> None:
    tested, trained = ([r.image for r in records if (r.split == "test") is which] for which in (True, False))
    sizes = {image.stat().st_size for image in tested} & {image.stat().st_size for image in trained}
    digests = {sha256(image) for image in trained if image.stat().st_size in sizes}
    if leaks := [image for image in tested if image.stat().st_size in sizes and sha256(image) in digests]:
        reading_warning(f"{len(leaks)} test photos are also training photos, byte for byte: {first_offenders(leaks)}")
