"""Provenance of a run's numbers: the settings that continued runs must share, and the report's description."""

import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import ValidationError

from anomalygpt.config.load import commit, resolve
from anomalygpt.config.schema import DataConfig, ExperimentConfig
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError
from anomalygpt.distributed import Process
from anomalygpt.evaluation.protocol import PAPER_SHOTS, Plan
from anomalygpt.files import sha256
from anomalygpt.model.checkpoint import read_metadata

TrainingData = Sequence[tuple[str, DataConfig | None]]  # per delta its path and training data; None: not in the file


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the numbers were made.

    Attributes:
        trained_on: a line per delta.
        seconds_per_photo: of one process: encoding, map, answer and metrics together.
        peak_memory: of the first process, in bytes.
        notes: further lines, such as what was measured.
        warnings: lines that stand first.
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
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A Markdown list."""
        time = "" if self.seconds_per_photo is None else f"; {self.seconds_per_photo:.2f} s per photo and process"
        return [
            *(f"* **{warning}**" for warning in self.warnings),
            f"* command: `{self.command}`",
            f"* commit: {self.commit or 'unknown'}; device: {self.device}; processes: {self.processes}{time}",
            f"* peak memory of the first process: {self.peak_memory / 1e9:.2f} GB",
            *(f"* {note}" for note in self.notes),
            *(f"* trained on: {line}" for line in self.trained_on),
            f"* references: {self.references}; seed {self.seed}",
        ]


def of_run(
    config: ExperimentConfig, command: str, process: Process, seed: int, seconds: float, photos: int
) -> dict[str, Any]:
    """The fields of :class:`Provenance` except ``references``."""
    return {
        "command": command,
        "config": config.name,
        "commit": commit(),
        "seed": seed,
        "device": str(process.device),
        "processes": process.world_size,
        "trained_on": tuple(f"{path}: {describe_training(data)}" for path, data in training_data(config)),
        "seconds_per_photo": seconds / photos if photos else None,
        # kilobytes on Linux, bytes on macOS
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def describe_references(plan: Plan) -> str:
    """How references were chosen, in words."""
    if not any(plan.shots):
        return "none; text map"
    if plan.choice == "random":
        return "K good training photos per class, drawn at random in each round"
    return f"numbers {PAPER_SHOTS} x round + k, k < K, of the sorted good training photos, as in the paper" + (
        f" (K x round + k for K > {PAPER_SHOTS})" if max(plan.shots) > PAPER_SHOTS else ""
    )


def fingerprint(config: ExperimentConfig, *, with_llm: bool, device: str) -> dict[str, Any]:
    """The model's settings by dotted key, and a digest of each delta: equal for runs with equal numbers.

    ``device`` is part of it: ``cpu`` and ``cuda`` differ in the last digits.
    """
    # parts of a config that an evaluation does not read
    excluded = {"name", "data", "training"} | (set() if with_llm else {"llm"})
    settings = config.model_dump(mode="json", exclude=excluded)
    reading = config.data.model_dump(mode="json", include=set(PhotoSettings.model_fields), exclude_none=True)
    [flat] = pd.json_normalize(settings | {"data": reading}).to_dict("records")
    # A missing delta is downloaded, and then checked, when the model is built.
    paths = {delta.path: resolve(delta.path) for delta in config.deltas}
    digests = {f"contents of {name}": sha256(path) for name, path in paths.items() if path.is_file()}
    return {**flat, **digests, "chat": with_llm, "device": device}


def training_data(config: ExperimentConfig) -> TrainingData:
    """Reads from each delta's metadata what it was trained on; raises CheckpointError where a delta is damaged."""
    found: list[tuple[str, DataConfig | None]] = []
    for delta in config.deltas:
        try:
            data = yaml.safe_load(read_metadata(resolve(delta.path))["config"]).get("data", {})
            known = {key: value for key, value in data.items() if key in DataConfig.model_fields}
            found.append((delta.path, DataConfig.model_validate(known)))
        except (KeyError, yaml.YAMLError, ValidationError, AttributeError):  # no metadata, or of another version
            found.append((delta.path, None))
    return found


def describe_training(data: DataConfig | None) -> str:
    """Training data in words."""
    if data is None:
        return "not in the file"
    sources = [
        f"{source.root} ({source.kind}{', ' + ' '.join(source.classes) if source.classes else ''})"
        for source in data.sources
    ]
    return f"{data.defects} defects on {', '.join(sources) or 'no photos'}"


def training_warnings(training: TrainingData, root: Path, class_names: Sequence[str]) -> list[str]:
    """A warning per source that shares the folder ``root``, or the name of a measured class, with the test data."""
    warnings = []
    for delta, data in training:
        for source in data.sources if data else ():
            names: Sequence[str] = source.classes or ()
            if source.classes is None:
                with suppress(DatasetError):  # the folder is not here
                    names = [record.class_name for record in INDEXERS[source.kind](resolve(source.root), None)]
            shared = sorted({*names} & {*class_names})
            same = resolve(source.root) == root.resolve()
            if same and data is not None and data.defects == "real":
                warnings.append(
                    f"{delta} was trained on the real defects of {source.root}, which include test photos: these "
                    "numbers do not hold for new photos"
                )
            elif shared or same:
                what = "the good photos of these classes" if same else "classes of the same names in other data"
                listed = f": {', '.join(shared)}" if shared and len(shared) < len(class_names) else ""
                where = f"{what} ({source.root}){listed}"
                warnings.append(f"{delta} was trained on {where}: this is not a test on unseen classes")
    return list(dict.fromkeys(warnings))
