"""Provenance of a run's numbers: the settings that continued runs must share, and the report's description."""

import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from anomalygpt.config.load import commit, resolve
from anomalygpt.config.schema import DataConfig, ExperimentConfig
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError
from anomalygpt.distributed import Process
from anomalygpt.evaluation.protocol import PAPER_SHOTS, Plan
from anomalygpt.files import sha256
from anomalygpt.model.checkpoint import read_metadata


def facts_of(
    config: ExperimentConfig, command: str, process: Process, seed: int, cells: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """How the numbers of a run were made; ``cells`` give their ``seconds`` and ``names`` of photos.

    To it are added how ``references`` were chosen, ``notes`` such as what was measured, and ``warnings``.
    """
    photos = sum(len(cell["names"]) for cell in cells)
    return {
        "command": command,
        "config": config.name,
        "commit": commit() or "unknown",
        "seed": seed,
        "device": str(process.device),
        "processes": process.world_size,
        "trained_on": [f"{path}: {describe_training(data)}" for path, data in training_data(config).items()],
        # of one process: encoding, map, answer and metrics together
        "seconds_per_photo": sum(cell["seconds"] for cell in cells) / photos,
        # in bytes, of the first process: kilobytes on Linux, bytes on macOS
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """A Markdown list of them."""
    device = f"device: {facts['device']}; processes: {facts['processes']}"
    return [
        *(f"* **{warning}**" for warning in facts.get("warnings", ())),
        f"* command: `{facts['command']}`",
        f"* commit: {facts['commit']}; {device}; {facts['seconds_per_photo']:.2f} s per photo and process",
        f"* peak memory of the first process: {facts['peak_memory'] / 1e9:.2f} GB",
        *(f"* {note}" for note in facts["notes"]),
        *(f"* trained on: {line}" for line in facts["trained_on"]),
        f"* references: {facts['references']}; seed {facts['seed']}",
    ]


def describe_references(plan: Plan) -> str:
    """How references were chosen, in words."""
    if not any(plan.shots):
        return "none; text map"
    if plan.choice == "random":
        return "K good training photos per class, drawn at random in each round"
    return f"numbers {PAPER_SHOTS} x round + k, k < K, of the sorted good training photos, as in the paper" + (
        f" (K x round + k for K > {PAPER_SHOTS})" if max(plan.shots) > PAPER_SHOTS else ""
    )


def fingerprint(config: ExperimentConfig, with_llm: bool) -> dict[str, Any]:
    """The model's settings by dotted key, and a digest of each delta: equal for runs with equal numbers."""
    # parts of a config that an evaluation does not read
    excluded = {"name", "data", "training"} | (set() if with_llm else {"llm"})
    settings = config.model_dump(mode="json", exclude=excluded)
    reading = config.data.model_dump(mode="json", include=set(PhotoSettings.model_fields), exclude_none=True)
    [flat] = pd.json_normalize(settings | {"data": reading}).to_dict("records")
    # A missing delta is downloaded, and then checked, when the model is built.
    paths = {delta.path: resolve(delta.path) for delta in config.deltas}
    digests = {f"contents of {name}": sha256(path) for name, path in paths.items() if path.is_file()}
    return {**flat, **digests, "chat": with_llm}


def training_data(config: ExperimentConfig) -> dict[str, DataConfig | None]:
    """What each delta was trained on, by its path; None where its file does not say.

    Raises:
        CheckpointError: a delta is damaged.
    """
    found: dict[str, DataConfig | None] = {}
    for delta in config.deltas:
        data = (yaml.safe_load(read_metadata(resolve(delta.path)).get("config", "")) or {}).get("data")
        known = {key: value for key, value in (data or {}).items() if key in DataConfig.model_fields}
        found[delta.path] = DataConfig.model_validate(known) if data else None
    return found


def describe_training(data: DataConfig | None) -> str:
    """Training data in words."""
    if data is None:
        return "not in the file"
    sources = [f"{one.root} ({one.kind}{', ' + ' '.join(one.classes) if one.classes else ''})" for one in data.sources]
    return f"{data.defects} defects on {', '.join(sources) or 'no photos'}"


def training_warnings(config: ExperimentConfig, root: Path, class_names: Sequence[str]) -> list[str]:
    """A warning per source that shares the folder ``root``, or the name of a measured class, with the test data."""
    warnings = []
    for delta, data in training_data(config).items():
        for source in data.sources if data else ():
            names: Sequence[str] = source.classes or ()
            if source.classes is None:
                with suppress(DatasetError):  # the folder is not here
                    names = [record.class_name for record in INDEXERS[source.kind](resolve(source.root), None)]
            shared = sorted({*names} & {*class_names})
            same = resolve(source.root) == root.resolve()
            if same and data and data.defects == "real":
                real = f"the real defects of {source.root}, which include test photos"
                warnings.append(f"{delta} was trained on {real}: these numbers do not hold for new photos")
            elif shared or same:
                what = "the good photos of these classes" if same else "classes of the same names in other data"
                listed = f": {', '.join(shared)}" if shared and len(shared) < len(class_names) else ""
                trained_on = f"{what} ({source.root}){listed}"
                warnings.append(f"{delta} was trained on {trained_on}: this is not a test on unseen classes")
    return warnings
