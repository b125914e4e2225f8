"""Divides records into those to train on and those held back to validate on.

The result depends on the seed and the files, not on the order of the records.
"""

from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np

from anomalygpt.datasets.records import ImageRecord, in_order

Division = tuple[list[ImageRecord], list[ImageRecord]]  # (to train on, held back)


def normal_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Division:
    """Divides the normal photos, class by class; defects and test photos are left out.

    Args:
        fraction: of each class's training photos that is held back, 0 <= fraction < 1: rounded, at least one of two or
            more, and never all. A class with a validation split (LOCO) keeps its training photos: that split
            is held back in their place, or nothing for fraction 0.
    """
    own_photos = in_order(r for r in records if r.split == "validation" and not r.is_anomalous)
    divided = {record.class_name for record in own_photos}
    groups: defaultdict[tuple[bool, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.split == "train" and not record.is_anomalous:
            groups[record.class_name in divided, record.class_name].append(record)
    parts = [_hold_back(group, 0 if own else fraction, name, seed) for (own, name), group in sorted(groups.items())]
    return _joined([*parts, ([], own_photos if fraction > 0 else [])])


def supervised_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Division:
    """Divides marked defects of every split, and normal photos that are not test photos.

    Data sets for anomaly detection keep their defects in the test split, so these are trained on: such a model must be
    measured on other data. Normal test photos are neither trained on nor validated on.

    Args:
        fraction: of each class's defects of a name that is held back; of normal photos as in :func:`normal_split`.
    """
    groups: defaultdict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.is_anomalous and record.masks:
            groups[record.class_name, record.defect].append(record)
    defects = [_hold_back(group, fraction, "/".join(names), seed) for names, group in sorted(groups.items())]
    return _joined([normal_split(records, fraction, seed), *defects])


def _joined(parts: Sequence[Division]) -> Division:
    return [record for train, _ in parts for record in train], [record for _, held in parts for record in held]


def _hold_back(group: Sequence[ImageRecord], fraction: float, name: str, seed: int) -> Division:
    """Divides one group, each part sorted by path; ``name`` and ``seed`` decide which photos are held back."""
    photos = sorted(group, key=lambda record: record.image)
    count = min(len(photos) - 1, max(1, round(fraction * len(photos)))) if fraction > 0 else 0
    order = np.random.default_rng([seed, crc32(name.encode())]).permutation(len(photos))
    held = set(order[:count].tolist())
    kept = [photo for position, photo in enumerate(photos) if position not in held]
    return kept, [photo for position, photo in enumerate(photos) if position in held]
