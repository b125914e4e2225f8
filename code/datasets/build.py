"""Config -> data: the one place of this layer that knows the config."""

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import DataConfig
from anomalygpt.datasets.folder import index_folder
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.simulated import SimulatedPairs, holdout
from anomalygpt.datasets.transforms import ImageTransform


def build_records(config: DataConfig) -> list[ImageRecord]:
    """Every photo of every source, in a fixed order.

    Raises:
        DatasetError: there is no source, or a tree is not laid out as its kind says.
    """
    if not config.sources:
        raise DatasetError("data.sources is empty; add one, as in data.sources='[{kind: mvtec, root: data/mvtec}]'")
    records: list[ImageRecord] = []
    for source in config.sources:
        root = resolve(source.root)
        if source.kind == "mvtec":
            records += index_mvtec(root, source.classes)
        else:
            records += [r for r in index_folder(root) if source.classes is None or r.class_name in source.classes]
    return records


def build_simulated(
    config: DataConfig, transform: ImageTransform, seed: int
) -> tuple[SimulatedPairs, SimulatedPairs | None]:
    """Training pairs, and pairs of held-back photos; the latter None where ``validation_share`` is 0."""
    normal = [r for r in build_records(config) if r.split == "train" and not r.is_anomalous]
    if not normal:
        raise DatasetError("data.sources hold no normal training photos (train/good)")

    def pairs(records: list[ImageRecord]) -> SimulatedPairs:
        return SimulatedPairs(
            records, transform, seed, source=config.patch_source, follow_up=config.follow_up_questions
        )

    if config.validation_share == 0:
        return pairs(normal), None
    train, held_back = holdout(normal, config.validation_share, seed)
    return pairs(train), pairs(held_back)
