"""What a run's numbers depend on: settings that runs into one folder must share, and what the report says of them."""

import hashlib
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from anomalygpt.config.load import OLD_NAMES, commit, resolve
from anomalygpt.config.schema import DataConfig, DataSource, ExperimentConfig
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError
from anomalygpt.distributed import Process
from anomalygpt.evaluation.protocol import PAPER_SHOTS, Plan
from anomalygpt.model.checkpoint import read_metadata

NO_INFLUENCE = {"name", "data", "training"}  # parts of a config that an evaluation does not read


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the numbers were made.

    Attributes:
        commit: of the code; None outside a checkout.
        trained_on: a line per delta.
        seconds_per_photo: of one process, encoding, map, answer and metrics together.
        peak_memory: of the first process, in bytes.
        references: which photos are, in words.
    """

    command: str
    config: str
    commit: str | None
    seed: int
    device: str
    processes: int
    trained_on: tuple[str, ...]
    seconds_per_photo: float | None
    peak_memory: int
    references: str

    def lines(self, subject: str) -> list[str]:
        """A Markdown list; ``subject`` is what was measured."""
        spent = "" if self.seconds_per_photo is None else f"; {self.seconds_per_photo:.2f} s a photo and process"
        return [
            f"* command: `{self.command}`",
            f"* commit: {self.commit or 'unknown'}; device: {self.device}; processes: {self.processes}{spent}",
            f"* peak memory of the first process: {self.peak_memory / 1e9:.2f} GB",
            f"* {subject}",
            *(f"* trained on: {line}" for line in self.trained_on),
            f"* references: {self.references}; seed {self.seed}",
        ]


@dataclass(frozen=True, kw_only=True)
class EvalProvenance(Provenance):
    """How metrics over photos were made.

    Attributes:
        data: the test data: kind and folder.
        maps: geometry of photos, pixels that are measured, and the masks' rule, in words, one per distinct setting.
        defects: what counts as one defect for AUPRO, in words.
        warnings: what limits the numbers.
    """

    data: str
    maps: tuple[str, ...]
    defects: str
    warnings: tuple[str, ...]


def of_run(
    config: ExperimentConfig, command: str, process: Process, seed: int, seconds: float, photos: int
) -> dict[str, Any]:
    """The fields of :class:`Provenance` that every run has, all but ``references``."""
    return {
        "command": command,
        "config": config.name,
        "commit": commit(),
        "seed": seed,
        "device": str(process.device),
        "processes": process.world_size,
        "trained_on": tuple(f"{path}: {trained_on(data)}" for path, data in training_data(config)),
        "seconds_per_photo": seconds / photos if photos else None,
        # kilobytes on Linux, bytes on macOS
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def references_in_words(plan: Plan) -> str:
    """How references were chosen."""
    if not any(plan.shots):
        return "none; text map"
    if plan.choice == "random":
        return "K good training photos a class, drawn at random in each round"
    return f"numbers {PAPER_SHOTS} x round + k, k < K, of the sorted good training photos, as in the paper" + (
        f" (K x round + k for K > {PAPER_SHOTS})" if max(plan.shots) > PAPER_SHOTS else ""
    )


# -- settings that runs into one folder must share ---------------------------------------------------------------------


def fingerprint(config: ExperimentConfig, *, with_llm: bool, device: str) -> dict[str, Any]:
    """The model's settings, flat, and a digest of each delta: equal for runs whose numbers are alike.

    Args:
        with_llm: False leaves the language model out.
        device: ``cpu`` and ``cuda`` differ in the last digits.
    """
    excluded = NO_INFLUENCE | (set() if with_llm else {"llm"})
    settings = _flat(config.model_dump(mode="json", exclude=excluded))
    # A delta that is not there is fetched, and then checked, when the model is built.
    paths = {delta.path: resolve(delta.path) for delta in config.deltas}
    digests = {f"contents of {name}": file_digest(path) for name, path in paths.items() if path.is_file()}
    return {**settings, **digests, "chat": with_llm, "device": device}


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


# -- training data -----------------------------------------------------------------------------------------------------


def training_data(config: ExperimentConfig) -> list[tuple[str, DataConfig | None]]:
    """Each delta's path, and the data that it was trained on by its own metadata; None where they do not say.

    Raises:
        CheckpointError: a delta is damaged.
    """
    return [(delta.path, _data_of(resolve(delta.path))) for delta in config.deltas]


def _data_of(path: Path) -> DataConfig | None:
    text = read_metadata(path).get("config") if path.is_file() else None
    if text is None:
        return None
    try:
        data = (yaml.safe_load(text) or {}).get("data", {})
        return DataConfig.model_validate({key: value for key, value in data.items() if f"data.{key}" not in OLD_NAMES})
    except (yaml.YAMLError, ValidationError, AttributeError):
        return None  # of a version with other settings


def trained_on(data: DataConfig | None) -> str:
    """Training data in words."""
    if data is None:
        return "not said in the file"
    sources = [
        f"{source.root} ({source.kind}{', ' + ' '.join(source.classes) if source.classes else ''})"
        for source in data.sources
    ]
    return f"{data.defects} defects on {', '.join(sources) or 'no photos'}"


def seen_in_training(
    training: Sequence[tuple[str, DataConfig | None]], root: Path, class_names: Sequence[str]
) -> list[str]:
    """Warnings: classes that are measured and that were trained on, in this very folder or in another."""
    warnings = []
    for delta, data in training:
        for source in data.sources if data else ():
            shared = sorted({*_classes(source)} & {*class_names})
            same = resolve(source.root) == root.resolve()
            if same and data is not None and data.defects == "real":
                warnings.append(
                    f"{delta} was trained on the real defects of {source.root}, test photos among them: these "
                    "numbers say nothing of unseen photos"
                )
            elif shared or same:
                what = "these very classes' good photos" if same else "classes of the same names in other data"
                listed = f": {', '.join(shared)}" if shared and len(shared) < len(class_names) else ""
                where = f"{what} ({source.root}){listed}"
                warnings.append(f"{delta} was trained on {where}: this is no test on unseen classes")
    return list(dict.fromkeys(warnings))


def _classes(source: DataSource) -> Sequence[str]:
    """A source's classes; none where they are not named, and its folder is not here."""
    if source.classes is not None:
        return source.classes
    try:
        return [record.class_name for record in INDEXERS[source.kind](resolve(source.root), None)]
    except DatasetError:
        return ()
