"""What was found on disk, as a table, and what of its masks may not be what was meant."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from anomalygpt.datasets.masks import read_mask
from anomalygpt.datasets.records import ImageRecord, first_offenders
from anomalygpt.errors import reading_warning
from anomalygpt.files import sha256

HEADER = ("class", "split", "kind", "photos", "masks", "read as")


def overview(records: Sequence[ImageRecord], *, with_masks: bool = True) -> list[str]:
    """A line per class, split and kind, with the number of photos and of masks and how these were read.

    Every mask is read, unless ``with_masks`` is false: then none is. Warns of classes whose masks mostly mark more than
    half of their photos or mark nothing, of kinds where some photos have a mask and others none, and of test photos
    that are training photos, too, byte for byte.

    Raises:
        DatasetError: a mask that can't be read.
    """
    groups: defaultdict[tuple[str, str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        groups[record.class_name, record.split, record.defect].append(record)
    rows, marked = [HEADER], defaultdict(list)
    for (name, split, kind), own in groups.items():
        codings = set()
        marking = [record for record in own if record.masks]
        for record in marking if with_masks else ():
            image, coding = read_mask(record)
            codings.add(coding)
            marked[name].append((float(np.mean(np.asarray(image) > 0)), record))
        without = [record.image.name for record in own if record.is_anomalous and not record.masks]
        if with_masks and marking and without:
            reading_warning(
                f"{own[0].image.parent}: {len(without)} defect photos have no mask ({first_offenders(without)}); they "
                "count in image metrics alone"
            )
        count = str(len(marking)) if marking or without else ""
        rows.append((name, split, kind, str(len(own)), count, ", ".join(sorted(codings))))
    for name, shares in marked.items():
        _warn(name, shares)
    _warn_of_leaks(records)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    bad = [record for record in records if record.is_anomalous]
    if with_masks and bad and not marked:
        lines.append("no defect photo has a mask: image metrics alone")
    return lines


def _warn(name: str, shares: Sequence[tuple[float, ImageRecord]]) -> None:
    """Warns where most masks of a class seem to be inverted, and where some are empty."""
    large = [record.masks[0] for share, record in shares if share > 0.5]
    if len(large) * 2 > len(shares):
        reading_warning(
            f"{name}: more than half of the photo is marked in {len(large)} of {len(shares)} masks, as in "
            f"{large[0]}; if defects are black in them, invert them"
        )
    empty = [record.masks[0] for share, record in shares if share == 0]
    if empty:
        reading_warning(f"{name}: {len(empty)} masks of defect photos mark nothing: {first_offenders(empty)}")


def _warn_of_leaks(records: Sequence[ImageRecord]) -> None:
    """Warns of photos that are both trained on and tested."""
    by_size: defaultdict[int, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_size[record.image.stat().st_size].append(record)
    leaks = []
    for group in (group for group in by_size.values() if len({record.split == "test" for record in group}) == 2):
        trained = {sha256(record.image) for record in group if record.split != "test"}
        leaks += [record.image for record in group if record.split == "test" and sha256(record.image) in trained]
    if leaks:
        reading_warning(f"{len(leaks)} test photos are also training photos, byte for byte: {first_offenders(leaks)}")
