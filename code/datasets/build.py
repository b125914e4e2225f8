"""Config -> data: the one place of this layer that knows the config."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.class_card import ClassCard
from anomalygpt.datasets.crack_forest import index_crack_forest
from anomalygpt.datasets.csv_table import index_csv
from anomalygpt.datasets.folder import folder_cards, index_folder
from anomalygpt.datasets.instructions import Instructions
from anomalygpt.datasets.loco import index_loco
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.simulated import SimulatedPairs, normal_split
from anomalygpt.datasets.supervised import SupervisedPairs, SupervisedSamples, supervised_split
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.datasets.visa import index_visa
from anomalygpt.datasets.wording import Wording

logger = logging.getLogger(__name__)

Indexer = Callable[[Path, Sequence[str] | None], list[ImageRecord]]
INDEXERS: Mapping[str, Indexer] = {
    "mvtec": index_mvtec,
    "visa": index_visa,
    "loco": index_loco,
    "crack_forest": index_crack_forest,
    "folder": index_folder,
    "csv": index_csv,
}


def build_records(config: DataConfig) -> list[ImageRecord]:
    """Every photo of every source, in a fixed order.

    Raises:
        DatasetError: there is no source, or a tree is not laid out as its kind says.
    """
    if not config.sources:
        raise DatasetError("data.sources is empty; add one, as in data.sources='[{kind: mvtec, root: data/mvtec}]'")
    return [
        record for source in config.sources for record in INDEXERS[source.kind](resolve(source.root), source.classes)
    ]


def build_cards(config: DataConfig) -> dict[str, ClassCard]:
    """What the folders' own ``dataset.yaml`` say about their classes, by class name.

    Raises:
        DatasetError: such a file is wrong, or two of them speak of one class.
    """
    cards: dict[str, ClassCard] = {}
    for source in config.sources:
        found = folder_cards(resolve(source.root)) if source.kind == "folder" else {}
        twice = sorted(cards.keys() & found.keys())
        if twice:
            raise DatasetError(f"{source.root}: another folder's dataset.yaml speaks of {', '.join(twice)}, too")
        cards |= found
    return cards


def build_wording(config: DataConfig) -> Wording:
    """How the photos are talked about."""
    return Wording(
        follow_up=config.follow_up_questions,
        languages=config.languages,
        description_share=config.description_share,
        cards=build_cards(config),
    )


def cache_bytes(config: DataConfig) -> int:
    """Memory that a process and its workers may fill with decoded photos."""
    return round(config.cache_gib * 2**30)


def build_pairs(
    config: DataConfig, transform: ImageTransform, seed: int
) -> tuple[SimulatedPairs | SupervisedPairs, SimulatedPairs | SupervisedPairs | None]:
    """Training and held-back pairs of the kind that ``config.defects`` names."""
    build = build_supervised if config.defects == "real" else build_simulated
    return build(config, transform, seed)


def build_simulated(
    config: DataConfig, transform: ImageTransform, seed: int
) -> tuple[SimulatedPairs, SimulatedPairs | None]:
    """Training pairs, and pairs of held-back photos; the latter None where nothing is held back.

    Photos are held back from the training split, or come from the data set's own validation split; never from the
    test split.
    """
    train, held_back = normal_split(build_records(config), config.validation_share, seed)
    if not train:
        raise DatasetError("data.sources hold no normal training photos (train/good)")
    wording = build_wording(config)

    def pairs(records: list[ImageRecord]) -> SimulatedPairs:
        return SimulatedPairs(
            records, transform, seed, config.patch_source, config.drawn_share, wording, cache_bytes(config)
        )

    return pairs(train), pairs(held_back) if held_back else None


def build_supervised(
    config: DataConfig, transform: ImageTransform, seed: int
) -> tuple[SupervisedPairs, SupervisedPairs | None]:
    """Training pairs of real defects, and held-back ones; the latter None where they lack defects or normal photos.

    Defects are taken from every split, the test split too: measure such a model on other data. Defects without a mask
    are left out, and counted in the log.
    """
    records = build_records(config)
    unmarked = sum(record.is_anomalous and record.mask is None for record in records)
    if unmarked:
        logger.warning("%d defect photos without a mask are left out", unmarked)
    wording = build_wording(config)

    def pairs(chosen: list[ImageRecord]) -> SupervisedPairs:
        return SupervisedPairs(SupervisedSamples(chosen, transform, seed, wording, cache_bytes(config)))

    train, held_back = supervised_split(records, config.validation_share, seed)
    kinds = {record.is_anomalous for record in held_back}
    if len(kinds) == 1:
        logger.warning(
            "nothing is validated: the %d held-back photos hold no %s, and pairs need both",
            len(held_back),
            "normal ones" if kinds == {True} else "defect (one is held back where a kind has two or more)",
        )
    return pairs(train), pairs(held_back) if len(kinds) == 2 else None


def build_instructions(config: DataConfig, transform: ImageTransform) -> Instructions | None:
    """The instruction data, None where the config names none."""
    source = config.instructions
    if source is None:
        return None
    return Instructions(resolve(source.conversations), resolve(source.images), transform, turns=source.turns)
