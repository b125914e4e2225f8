"""What a model was trained on, as its deltas say, and whether it is now measured on the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import DataConfig, DataSource, ExperimentConfig
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError
from anomalygpt.model.checkpoint import read_metadata


@dataclass(frozen=True)
class Training:
    """The training of one delta. ``data`` is None where its file does not say."""

    delta: str
    data: DataConfig | None

    def __str__(self) -> str:
        if self.data is None:
            return f"{self.delta}: not said in the file"
        sources = [
            f"{source.root} ({source.kind}{', ' + ' '.join(source.classes) if source.classes else ''})"
            for source in self.data.sources
        ]
        return f"{self.delta}: {self.data.defects} defects on {', '.join(sources) or 'no photos'}"


def trainings(config: ExperimentConfig) -> list[Training]:
    """What each delta of an experiment was trained on.

    Raises:
        CheckpointError: a delta is damaged.
    """
    return [Training(delta.path, _data_of(resolve(delta.path))) for delta in config.deltas]


def _data_of(path: Path) -> DataConfig | None:
    text = read_metadata(path).get("config") if path.is_file() else None
    if text is None:
        return None
    try:
        return DataConfig.model_validate((yaml.safe_load(text) or {}).get("data", {}))
    except (yaml.YAMLError, ValidationError, AttributeError):
        return None  # of a version with other settings


def seen_in_training(found: Sequence[Training], root: Path, class_names: Sequence[str]) -> list[str]:
    """Warnings: classes that are measured and that were trained on, in this very folder or in another."""
    warnings = []
    for training in found:
        for source in training.data.sources if training.data else ():
            shared = sorted(set(_classes(source)) & set(class_names))
            same = resolve(source.root) == root.resolve()
            real = training.data is not None and training.data.defects == "real"
            if same and real:
                warnings.append(
                    f"{training.delta} was trained on the real defects of {source.root}, test photos among them: these "
                    "numbers say nothing of unseen photos"
                )
            elif shared or same:
                what = "these very classes' good photos" if same else "classes of the same names in other data"
                listed = f": {', '.join(shared)}" if shared and len(shared) < len(class_names) else ""
                where = f"{what} ({source.root}){listed}"
                warnings.append(f"{training.delta} was trained on {where}: this is no test on unseen classes")
    return list(dict.fromkeys(warnings))


def _classes(source: DataSource) -> Sequence[str]:
    """A source's classes; none where they are not named, and its folder is not there to look at."""
    if source.classes is not None:
        return source.classes
    try:
        return sorted({record.class_name for record in INDEXERS[source.kind](resolve(source.root), None)})
    except DatasetError:
        return ()
