"""Config -> data: the one place of this layer that knows the config."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from zlib import crc32

import numpy as np

from anomalygpt.config.load import nor, resolve
from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.annotations import index_coco, index_labelme, index_yolo
from anomalygpt.datasets.class_info import folder_infos
from anomalygpt.datasets.csv_table import index_csv, index_visa
from anomalygpt.datasets.dialogue import Wording
from anomalygpt.datasets.findings_dialogue import FindingsConversations
from anomalygpt.datasets.layouts import index_crack_forest, index_marked, index_real_iad
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.pairs import TrainingPairs
from anomalygpt.datasets.photos import configure, load_image
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import first_offenders, reading_warning
from anomalygpt.files import sha256

logger = logging.getLogger(__name__)

HEADER = ("class", "split", "kind", "photos", "masks", "read as")  # of the overview
Division = tuple[list[ImageRecord], list[ImageRecord]]  # (to train on, held back to validate on)
INDEXERS: Mapping[str, Callable[[Path, Sequence[str] | None], list[ImageRecord]]] = {
    **dict.fromkeys(("mvtec", "loco", "mvtec_ad_2", "mpdd", "btad", "folder"), index_tree),
    **dict.fromkeys(("kolektor_sdd", "kolektor_sdd2", "dagm"), index_marked),
    "visa": index_visa,
    "crack_forest": index_crack_forest,
    "real_iad": index_real_iad,
    "coco": index_coco,
    "yolo": index_yolo,
    "labelme": index_labelme,
    "csv": index_csv,
}


def build_records(config: DataConfig) -> list[ImageRecord]:
    """Every photo of every source, in a fixed order. Raises :class:`DatasetError` for none, or as the readers do."""
    if not config.sources:
        raise DatasetError("data.sources is empty; add one, as in data.sources='[{kind: mvtec, root: data/mvtec}]'")
    if absent := [source.root for source in config.sources if not resolve(source.root).exists()]:
        raise DatasetError(f"data.sources: {resolve(absent[0])}: not there{nor(absent[0])}")
    return [each for source in config.sources for each in INDEXERS[source.kind](resolve(source.root), source.classes)]


def normal_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Division:
    """Divides the normal photos, class by class; defects and test photos are left out.

    ``fraction``, 0 <= fraction < 1, of each class's training photos is held back, at least one of two or more. A class
    with a validation split (LOCO) keeps them: that split is held back in their place, or nothing for fraction 0.
    """
    own_photos = sorted(r for r in records if r.split == "validation" and not r.is_anomalous)
    divided = {record.class_name for record in own_photos}
    trained = sorted(r for r in records if r.split == "train" and not r.is_anomalous)
    rest = [record for record in trained if record.class_name not in divided]
    train, held = _hold_back(rest, lambda record: record.class_name, fraction, seed)
    train += [record for record in trained if record.class_name in divided]
    return train, held + (own_photos if fraction > 0 else [])


def supervised_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Division:
    """Divides marked defects of every split, by class and name, and normal photos as :func:`normal_split`.

    Defects of test splits are trained on: such a model must be measured on other data. Normal test photos are not used.
    """
    marked = [record for record in records if record.is_anomalous and record.masks]
    defects = _hold_back(marked, lambda record: f"{record.class_name}/{record.defect}", fraction, seed)
    normal = normal_split(records, fraction, seed)
    return normal[0] + defects[0], normal[1] + defects[1]


def _hold_back(records: Sequence[ImageRecord], key: Callable[[ImageRecord], str], share: float, seed: int) -> Division:
    """Divides each group; its name and files and the seed decide which photos are held back, not their order."""
    train: list[ImageRecord] = []
    held: list[ImageRecord] = []
    for name, group in groupby(sorted(records, key=lambda record: (key(record), record.image)), key):
        photos = list(group)
        count = min(len(photos) - 1, max(1, round(share * len(photos)))) if share > 0 else 0
        chosen = np.random.default_rng([seed, crc32(name.encode())]).permutation(len(photos))[:count]
        for position, photo in enumerate(photos):
            (held if position in chosen else train).append(photo)
    return train, held


def _readable(records: Sequence[ImageRecord], policy: str) -> list[ImageRecord]:
    """The records whose photos can be decoded; the others are refused, or left out and counted in the log."""

    def fault(record: ImageRecord) -> str | None:
        try:
            load_image(record.image)
        except DatasetError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        faults = list(threads.map(fault, records))
    if wrong := [*filter(None, faults)]:
        message = f"{len(wrong)} photos can't be read: {first_offenders(wrong)}"
        if policy == "refuse":
            raise DatasetError(message)
        logger.warning("%s; left out", message)
    return [record for record, wrong in zip(records, faults, strict=True) if wrong is None]


def build_pairs(
    config: DataConfig, transform: ImageTransform, seed: int, *, decode_all: bool = False
) -> tuple[TrainingPairs, TrainingPairs | None]:
    """Training pairs of the kind that ``config.defects`` names, and held-back ones, None where there can be none.

    ``decode_all``: every photo is read once, and ``config.unreadable`` applies; else none is read.
    """
    configure(config)
    records, is_real = build_records(config), config.defects == "real"
    for line in overview(records, with_masks=is_real):
        logger.info(line)
    own = (folder_infos(resolve(source.root)) for source in config.sources if source.kind == "folder")
    infos = {name: info for table in own for name, info in table.items()}
    wording = Wording(config.follow_up_questions, config.languages, config.description_share, infos)
    parts = (supervised_split if is_real else normal_split)(records, config.validation_share, seed)
    train, held_back = (_readable(part, config.unreadable) if decode_all else part for part in parts)
    if not (train or is_real):
        raise DatasetError("data.sources hold no normal training photos (train/good)")
    if unmarked := is_real and sum(record.is_anomalous and not record.masks for record in records):
        logger.warning("%d defect photos without a mask are left out", unmarked)
    kinds = {record.is_anomalous for record in held_back}
    if is_real and len(kinds) == 1:
        lacking = "normal ones" if True in kinds else "defect (one is held back where a kind has two or more)"
        logger.warning("nothing is validated: the %d held-back photos hold no %s", len(held_back), lacking)
    options = (transform, seed, config.patch_source, config.drawn_share, wording, is_real)
    validation = TrainingPairs(held_back, *options) if len(kinds) == 1 + is_real else None
    return TrainingPairs(train, *options), validation


def build_findings(
    config: DataConfig, embed_width: int, seed: int
) -> tuple[FindingsConversations, FindingsConversations | None]:
    """Conversations about drawn findings for training, and with held-out wordings, None where none are held back."""
    chinese = config.languages.count("zh") / len(config.languages)
    held_out = round(config.validation_share * config.findings)
    train = FindingsConversations(config.findings, embed_width, seed, "train", chinese)
    return train, FindingsConversations(held_out, embed_width, seed, "held_out", chinese) if held_out else None


def overview(records: Sequence[ImageRecord], *, with_masks: bool = True) -> list[str]:
    """A line per class, split and kind: photos, masks and how they were read; warns of what looks wrong."""
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
    tested, trained = ([r.image for r in records if (r.split == "test") is which] for which in (True, False))
    sizes = {image.stat().st_size for image in tested} & {image.stat().st_size for image in trained}
    digests = {sha256(image) for image in trained if image.stat().st_size in sizes}
    if leaks := [image for image in tested if image.stat().st_size in sizes and sha256(image) in digests]:
        reading_warning(f"{len(leaks)} test photos are also training photos, byte for byte: {first_offenders(leaks)}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if with_masks and not marked and any(record.is_anomalous for record in records):
        lines.append("no defect photo has a mask: image metrics alone")
    return lines
