"""Results as Markdown, JSON and CSV, with what it takes to reproduce them, beside published numbers."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from anomalygpt.config.load import commit, resolve
from anomalygpt.config.schema import DataConfig, ExperimentConfig
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.distributed import Process
from anomalygpt.files import read_yaml, sha256, write_files
from anomalygpt.model.checkpoint import read_metadata

MAP_METRICS = ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"]
VERDICT_METRICS = ["verdict_accuracy", "recall", "false_alarm_rate", "score_accuracy", "hindsight_accuracy"]
ANSWER_METRICS = ["answer_accuracy", "position_accuracy"]
METRICS = MAP_METRICS + VERDICT_METRICS + ANSWER_METRICS
CELL_COLUMNS = ["shots", "round", "class", "photos", "with_defect", "masked_photos", "regions", "no_verdict", "placed"]
MEANING = "All numbers are percentages, as docs/evaluation.md defines them. Mean: over classes. ±: over rounds."
PUBLISHED = read_yaml(Path(__file__).with_name("published.yaml"))


def title_of(shots: int) -> str:
    """A protocol's name."""
    return f"{shots}-shot" if shots else "Zero-shot"


def official_dataset(kind: str, records: Sequence[ImageRecord]) -> str | None:
    """The key in ``PUBLISHED["datasets"]`` with these records' layout, classes and number of test photos, if any."""
    about = (kind, sorted({record.class_name for record in records}), sum(one.split == "test" for one in records))
    datasets = PUBLISHED["datasets"].items()
    return next((key for key, one in datasets if (one["kind"], one["classes"], one["test_photos"]) == about), None)


def results_frame(results: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per cell, by shots, round and class: counts and metrics."""
    frame = pd.DataFrame([cell | cell["metrics"] for cell in results])
    frame["with_defect"] = [sum(photo["is_anomalous"] for photo in photos) for photos in frame["photos"]]
    frame["photos"] = frame["photos"].map(len)
    frame = frame[[*CELL_COLUMNS, *METRICS]].astype(dict.fromkeys(METRICS, float))
    return frame.sort_values(["shots", "round", "class"], ignore_index=True)


class Protocol:
    """All classes and rounds with K references: of each class, and of the means over classes, :func:`_spread`."""

    def __init__(self, shots: int, results: Sequence[dict[str, Any]]) -> None:
        self.shots = shots
        self.results = [result for result in results if result["shots"] == shots]
        self.frame = results_frame(self.results)
        self.used = [name for name in METRICS if self.frame[name].notna().any()]
        self.classes = {name: _spread(own[METRICS]) for name, own in self.frame.groupby("class")}
        by_round = self.frame.groupby("round")[METRICS].mean()
        self.rounds = by_round.index.tolist()
        self.mean = _spread(by_round)

    def as_json(self) -> dict[str, Any]:
        """Means, and every class with each round and photo; scores and metrics are 0..1."""
        rounds = {name: [result for result in self.results if result["class"] == name] for name in self.classes}
        classes = [{"class": name, **_json(self.classes[name]), "rounds": own} for name, own in rounds.items()]
        return {"shots": self.shots, "rounds": self.rounds, **_json(self.mean), "classes": classes}

    def lines(self, config: str, dataset: str | None) -> list[str]:
        """Its part of the page: a row per class, and what was published on the data set."""
        lines = ["", f"## {title_of(self.shots)}", ""]
        lines += [f"Rounds: {', '.join(map(str, self.rounds))}.", ""] if self.shots else []
        for metrics in (MAP_METRICS, VERDICT_METRICS + ANSWER_METRICS):
            lines += [*markdown_table(self._table(metrics), texts=1), ""]
        others = [row for row in PUBLISHED["rows"] if (row["dataset"], row["shots"]) == (dataset, self.shots)]
        if others:
            lines += ["", f"Beside published means on {PUBLISHED['datasets'][dataset]['title']}:", ""]
            lines += [*markdown_table(self._beside(others, config), texts=2), ""]
            sources = dict.fromkeys(row["source"] for row in others)
            lines += [f"* {PUBLISHED['sources'][source]['text']}" for source in sources]
        return lines

    def _table(self, metrics: list[str]) -> pd.DataFrame:
        table = self.frame.groupby("class")[["photos", "with_defect"]].first()
        table.loc["**mean**"] = table.sum()
        spreads = [*self.classes.values(), self.mean]
        columns = {key: [percent(*one.loc[key]) for one in spreads] for key in metrics if key in self.used}
        return table.astype(str).assign(**columns).reset_index()

    def _beside(self, others: Sequence[dict[str, Any]], config: str) -> pd.DataFrame:
        keys = [key for key in self.used if any(key in row for row in others)]
        this_run = {"method": f"this run ({config})", "protocol": "few-shot" if self.shots else "see above"}
        rows = [this_run | {key: percent(*self.mean.loc[key]) for key in keys}]
        rows += [one | {key: percent(*np.divide(one.get(key, [np.nan]), 100)) for key in keys} for one in others]
        return pd.DataFrame(rows, columns=["method", "protocol", *keys])


def _spread(rounds: pd.DataFrame) -> pd.DataFrame:
    """Of each column the mean and, of two rounds or more, the standard deviation."""
    return pd.DataFrame({"mean": rounds.mean(), "std": rounds.std(ddof=0).where(rounds.count() > 1)})


def _json(spread: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    return spread.astype(object).where(spread.notna(), None).to_dict()


def percent(mean: float, std: float = np.nan) -> str:
    """A mean in percent, with its standard deviation where there is one; a dash for NaN."""
    if np.isnan(mean):
        return "–"
    return f"{100 * mean:.1f}" if np.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f}"


def markdown_table(table: pd.DataFrame, texts: int) -> list[str]:
    """The lines of a table; all but the first ``texts`` columns are aligned to the right."""
    rule = "|" + "---|" * texts + "--:|" * (len(table.columns) - texts)
    header, *rows = ("| " + " | ".join(cells) + " |" for cells in (table.columns, *table.to_numpy().tolist()))
    return [header, rule, *rows]


def report(facts: dict[str, Any], results: Sequence[dict[str, Any]], dataset: str | None = None) -> dict[str, Any]:
    """The contents of results.json, .md and per_class.csv (metrics 0..1), by name; ``dataset``: in published.yaml."""
    protocols = [Protocol(shots, results) for shots in sorted({result["shots"] for result in results})]
    lines = [f"# {', '.join(title_of(one.shots) for one in protocols)}: {facts['config']}", "", *fact_lines(facts)]
    for protocol in protocols:
        lines += protocol.lines(facts["config"], dataset)
    return {
        "results.json": {"facts": facts, "protocols": [one.as_json() for one in protocols]},
        "results.md": "\n".join([*lines, "", MEANING, ""]),
        "per_class.csv": results_frame(results).to_csv(index=False, float_format="%.6f", lineterminator="\n"),
    }


def publish(contents: dict[str, Any], folder: Path | None) -> None:
    """Prints results.md, and writes all files into the folder, if there is one, as :func:`write_files` does."""
    print(contents["results.md"], end="")
    if folder:
        write_files(folder, contents)
        print(f"\nwrote {', '.join(contents)}", file=sys.stderr)


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


def facts_of(config: ExperimentConfig, command: str, process: Process, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """How the numbers of a run were made; ``cells`` give their ``seconds`` and ``names`` of photos."""
    seconds, photos = sum(cell["seconds"] for cell in cells), sum(len(cell["names"]) for cell in cells)
    return {
        "command": command,
        "config": config.name,
        "commit": commit() or "unknown",
        "seed": config.seed,
        "device": str(process.device),
        "processes": process.world_size,
        "seconds per photo and process": round(seconds / photos, 2),
        "trained on": _trained_on(config, {cell["class"] for cell in cells}),
    }


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """A Markdown list of them, and of each entry of a list."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in facts.items()}
    return [f"* {name}: {one}" for name, values in listed.items() for one in values]


def _trained_on(config: ExperimentConfig, measured: set[str]) -> list[str]:
    """For each delta, its training's defects, photos and which measured classes these show, as far as its file says."""
    lines = []
    for delta in config.deltas:
        data = (yaml.safe_load(read_metadata(resolve(delta.path)).get("config", "")) or {}).get("data") or {}
        known = DataConfig.model_validate({key: data[key] for key in data.keys() & DataConfig.model_fields.keys()})
        where, seen = [], set()
        for one in known.sources:
            where.append(f"{one.root} ({', '.join([one.kind, *(one.classes or ())])})")
            with suppress(DatasetError):  # the folder is not here
                seen |= {*(one.classes or (each.class_name for each in INDEXERS[one.kind](resolve(one.root), None)))}
        words = f"{known.defects} defects on {', '.join(where)}" if where else "its file names no photos"
        shared = ", ".join(sorted(seen & measured))
        lines.append(f"{delta.path}: {words}" + f"; this is not a test on unseen classes: {shared}" * bool(shared))
    return lines
