"""Config -> data: the one place of this layer that knows the config."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np

from anomalygpt.config.load import nor, resolve
from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.annotations import index_coco, index_labelme, index_yolo
from anomalygpt.datasets.class_info import ClassInfo, folder_infos
from anomalygpt.datasets.csv_table import index_csv, index_visa
from anomalygpt.datasets.dialogue import Wording
from anomalygpt.datasets.findings_dialogue import FindingsConversations
from anomalygpt.datasets.instructions import Instructions
from anomalygpt.datasets.layouts import index_crack_forest, index_marked, index_real_iad
from anomalygpt.datasets.overview import overview
from anomalygpt.datasets.pairs import TrainingPairs
from anomalygpt.datasets.photos import configure, load_image
from anomalygpt.datasets.records import DatasetError, ImageRecord, first_offenders
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.datasets.tree import index_tree

logger = logging.getLogger(__name__)

Division = tuple[list[ImageRecord], list[ImageRecord]]  # (to train on, held back to validate on)
Indexer = Callable[[Path, Sequence[str] | None], list[ImageRecord]]
INDEXERS: Mapping[str, Indexer] = {
    **dict.fromkeys(("mvtec", "loco", "mvtec_ad_2", "mpdd", "btad", "folder"), index_tree),
    "visa": index_visa,
    "crack_forest": index_crack_forest,
    **dict.fromkeys(("kolektor_sdd", "kolektor_sdd2", "dagm"), index_marked),
    "real_iad": index_real_iad,
    "coco": index_coco,
    "yolo": index_yolo,
    "labelme": index_labelme,
    "csv": index_csv,
}


def build_records(config: DataConfig) -> list[ImageRecord]:
    """Every photo of every source, in a fixed order.

    Raises:
        DatasetError: there is no source, or a tree does not have the layout of its kind.
    """
    if not config.sources:
        raise DatasetError("data.sources is empty; add one, as in data.sources='[{kind: mvtec, root: data/mvtec}]'")
    absent = [source.root for source in config.sources if not resolve(source.root).exists()]
    if absent:
        raise DatasetError(f"data.sources: {resolve(absent[0])}: not there{nor(absent[0])}")
    return [
        record for source in config.sources for record in INDEXERS[source.kind](resolve(source.root), source.classes)
    ]


def build_cards(config: DataConfig) -> dict[str, ClassInfo]:
    """The entries of all folders' ``dataset.yaml``, by class name. Raises :class:`DatasetError` if one is wrong."""
    infos: dict[str, ClassInfo] = {}
    for source in config.sources:
        infos |= folder_infos(resolve(source.root)) if source.kind == "folder" else {}
    return infos


def normal_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Division:
    """Divides the normal photos, class by class; defects and test photos are left out.

    Args:
        fraction: of each class's training photos that is held back, 0 <= fraction < 1: rounded, at least one of two or
            more, and never all. A class with a validation split (LOCO) keeps its training photos: that split
            is held back in their place, or nothing for fraction 0.
    """
    own_photos = sorted(r for r in records if r.split == "validation" and not r.is_anomalous)
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
    """Divides one group; its name and files and the seed decide which photos are held back, not their order."""
    photos = sorted(group, key=lambda record: record.image)
    count = min(len(photos) - 1, max(1, round(fraction * len(photos)))) if fraction > 0 else 0
    order = np.random.default_rng([seed, crc32(name.encode())]).permutation(len(photos))
    held = set(order[:count].tolist())
    kept = [photo for position, photo in enumerate(photos) if position not in held]
    return kept, [photo for position, photo in enumerate(photos) if position in held]


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
    if wrong := list(filter(None, faults)):
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

    Simulated defects: photos are held back from the training split, or come from the data set's own validation split;
    never from the test split. Real defects are taken from every split, the test split too: measure such a model on
    other data. Defects without a mask are left out and counted in the log.
    """
    configure(config)
    records, is_real = build_records(config), config.defects == "real"
    for line in overview(records, with_masks=is_real):
        logger.info(line)
    infos = build_cards(config)
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
        message = "nothing is validated: the %d held-back photos hold no %s, and pairs need both"
        logger.warning(message, len(held_back), lacking)
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


def build_instructions(config: DataConfig, transform: ImageTransform) -> Instructions | None:
    """The instruction data, None where the config names none."""
    if (source := config.instructions) is None:
        return None
    return Instructions(resolve(source.conversations), resolve(source.images), transform, source.turns)
