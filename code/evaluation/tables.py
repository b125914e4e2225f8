"""Results as Markdown, JSON and CSV, with what it takes to reproduce them, beside published numbers."""

import json
import resource
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
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.distributed import Process
from anomalygpt.evaluation.metrics import hindsight_accuracy
from anomalygpt.files import read_yaml, replacing
from anomalygpt.model.checkpoint import read_metadata

MAP_METRICS = {
    "image_auroc": "image-AUROC",
    "image_ap": "image-AP",
    "image_f1_max": "image-F1-max",
    "pixel_auroc": "pixel-AUROC",
    "pixel_ap": "pixel-AP",
    "pixel_f1_max": "pixel-F1-max",
    "aupro": "AUPRO",
}
VERDICT_METRICS = {
    "verdict_accuracy": "verdict accuracy",
    "recall": "recall",
    "false_alarm_rate": "false alarms",
    "score_accuracy": "by score",
    "hindsight_accuracy": "in hindsight",
    "answer_accuracy": "answer accuracy",
    "position_accuracy": "position",
    "position_cell_accuracy": "position (cell)",
}
METRICS = MAP_METRICS | VERDICT_METRICS
HINDSIGHT = "one_threshold_in_hindsight"
CELL_COLUMNS = ["shots", "round", "class", "photos", "with_defect", "masked_photos", "regions", "no_verdict", "placed"]
MEANING = "All numbers are percentages, as docs/evaluation.md defines them. Mean: over classes. ±: over rounds."
PUBLISHED = read_yaml(Path(__file__).with_name("published.yaml"))


def title_of(shots: int) -> str:
    """A protocol's name."""
    return f"{shots}-shot" if shots else "Zero-shot"


def official_dataset(kind: str, records: Sequence[ImageRecord]) -> str | None:
    """The key in ``PUBLISHED["datasets"]`` with these records' layout, classes and number of test photos, if any."""
    names = sorted({record.class_name for record in records})
    photos = sum(record.split == "test" for record in records)
    for key, entry in PUBLISHED["datasets"].items():
        if entry["kind"] == kind and sorted(entry["classes"]) == names and entry["test_photos"] == photos:
            return key
    return None


def results_frame(results: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """A row per cell, by shots, round and class: counts and metrics."""
    rows = [
        cell
        | cell["metrics"]
        | {"photos": len(cell["photos"]), "with_defect": sum(photo["is_anomalous"] for photo in cell["photos"])}
        for cell in results
    ]
    frame = pd.DataFrame(rows, columns=CELL_COLUMNS + list(METRICS)).astype(dict.fromkeys(METRICS, float))
    return frame.sort_values(["shots", "round", "class"], ignore_index=True)


class Protocol:
    """All classes and rounds with K references.

    Attributes:
        frame: :func:`results_frame` of the results.
        used: the metrics that any class has.
        classes: by class, mean and standard deviation over rounds, a row per metric; NaN where undefined.
        mean: the same of the means over classes, and of the best accuracy with one threshold for all classes.
    """

    def __init__(self, shots: int, results: Sequence[dict[str, Any]]) -> None:
        self.shots = shots
        self.results = [result for result in results if result["shots"] == shots]
        self.frame = results_frame(self.results)
        self.used = [name for name in METRICS if self.frame[name].notna().any()]
        self.classes = {name: _spread(own[list(METRICS)]) for name, own in self.frame.groupby("class")}
        by_round = self.frame.groupby("round")[list(METRICS)].mean()
        for number in by_round.index:
            cells = [pd.DataFrame(result["photos"]) for result in self.results if result["round"] == number]
            by_round.loc[number, HINDSIGHT] = hindsight_accuracy([(one["score"], one["is_anomalous"]) for one in cells])
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
        for metrics in (MAP_METRICS, VERDICT_METRICS):
            lines += [*markdown_table(self._table(metrics), texts=1), ""]
        hindsight = percent(*self.mean.loc[HINDSIGHT])
        lines += [f"The best threshold for all classes together, in hindsight: {hindsight} (mean over classes)."]
        others = [row for row in PUBLISHED["rows"] if (row["dataset"], row["shots"]) == (dataset, self.shots)]
        if others:
            lines += ["", f"Beside published means on {PUBLISHED['datasets'][dataset]['title']}:", ""]
            lines += [*markdown_table(self._beside(others, config), texts=2), ""]
            sources = dict.fromkeys(row["source"] for row in others)
            lines += [f"* {PUBLISHED['sources'][source]['text']}" for source in sources]
        return lines

    def _table(self, metrics: dict[str, str]) -> pd.DataFrame:
        table = self.frame.loc[self.frame["round"] == self.rounds[0], ["class", "photos", "with_defect"]]
        table.loc["mean"] = ["**mean**", *table[["photos", "with_defect"]].sum()]
        spreads = [*self.classes.values(), self.mean]
        used = [key for key in metrics if key in self.used]
        columns = {metrics[key]: [percent(*spread.loc[key]) for spread in spreads] for key in used}
        return table.astype(str).rename(columns={"with_defect": "with a defect"}).assign(**columns)

    def _beside(self, others: Sequence[dict[str, Any]], config: str) -> pd.DataFrame:
        keys = [key for key in self.used if any(key in row for row in others)]
        this_run = {"method": f"this run ({config})", "protocol": "few-shot" if self.shots else "see above"}
        rows = [this_run | {METRICS[key]: percent(*self.mean.loc[key]) for key in keys}]
        for row in others:
            values = {METRICS[key]: percent(*np.divide(row.get(key, [np.nan]), 100)) for key in keys}
            rows.append({"method": row["method"], "protocol": row["protocol"], **values})
        return pd.DataFrame(rows)


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


def report(facts: dict[str, Any], results: Sequence[dict[str, Any]], dataset: str | None = None) -> dict[str, str]:
    """The texts of results.json, .md and per_class.csv (metrics 0..1), by name.

    Args:
        results: of cells.
        dataset: the official one's key in published.yaml.
    """
    protocols = [Protocol(shots, results) for shots in sorted({result["shots"] for result in results})]
    content = {"facts": facts, "protocols": [one.as_json() for one in protocols]}
    lines = [f"# {', '.join(title_of(one.shots) for one in protocols)}: {facts['config']}", "", *fact_lines(facts)]
    for protocol in protocols:
        lines += protocol.lines(facts["config"], dataset)
    return {
        "results.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "results.md": "\n".join([*lines, "", MEANING, ""]),
        "per_class.csv": results_frame(results).to_csv(index=False, float_format="%.6f", lineterminator="\n"),
    }


def publish(texts: dict[str, str], folder: Path | None) -> None:
    """Prints results.md, and writes all files into the folder, if there is one, as :func:`write_texts` does."""
    print(texts["results.md"], end="")
    if folder:
        write_texts(folder, texts)
        print(f"\nwrote {', '.join(texts)}", file=sys.stderr)


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Writes files by name atomically into a folder, CSV with the mark that Excel needs; raises OSError."""
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8-sig" if name.endswith(".csv") else "utf-8")


def facts_of(
    config: ExperimentConfig, command: str, process: Process, seed: int, cells: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """How the numbers of a run were made; ``cells`` give their ``seconds`` and ``names`` of photos."""
    seconds, photos = sum(cell["seconds"] for cell in cells), sum(len(cell["names"]) for cell in cells)
    # kilobytes on Linux, bytes on macOS
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "command": command,
        "config": config.name,
        "commit": commit() or "unknown",
        "seed": seed,
        "device": str(process.device),
        "processes": process.world_size,
        "seconds per photo and process": round(seconds / photos, 2),
        "GB of the first process at most": round(peak_memory / 1e9, 2),
        "trained on": [f"{path}: {describe_training(data)}" for path, data in training_data(config).items()],
    }


def fact_lines(facts: dict[str, Any]) -> list[str]:
    """A Markdown list of them, and of each entry of a list."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in facts.items()}
    return [f"* {name}: {one}" for name, values in listed.items() for one in values]


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
    sources = [f"{one.root} ({', '.join([one.kind, *(one.classes or ())])})" for one in data.sources]
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
            shared = ", ".join(sorted({*names} & {*class_names}))
            seen = f"({source.root}): this is not a test on unseen classes"
            if resolve(source.root) != root.resolve():
                warnings += [f"{delta} was trained on other data with {shared} {seen}"] if shared else []
            elif data and data.defects == "real":
                real = f"the real defects of {source.root}, which include test photos"
                warnings.append(f"{delta} was trained on {real}: these numbers do not hold for new photos")
            else:
                warnings.append(f"{delta} was trained on the good photos of these classes {seen}")
    return warnings
