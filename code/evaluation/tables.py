"""Results as Markdown, JSON and CSV, with what it takes to reproduce them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from anomalygpt.evaluation.cells import CellResult
from anomalygpt.evaluation.metrics import PRO_LIMIT, hindsight_accuracy
from anomalygpt.evaluation.provenance import Provenance
from anomalygpt.evaluation.published import MAP_METRICS, METRICS, VERDICT_METRICS, Published, Spread
from anomalygpt.files import replacing

UNDEFINED = "–"
HINDSIGHT = "one_threshold_in_hindsight"
CELL_COLUMNS = ("masked_photos", "regions", "no_verdict", "placed")
MEANING = (
    "All numbers are percentages. Mean: over classes. ±: standard deviation over rounds. Image metrics use the score "
    "of each map. Pixel metrics use all pixels of a class's test photos together. AUPRO is integrated up to a "
    f"false-positive rate of {PRO_LIMIT}. F1-max is the F1 score at the best threshold, chosen with the ground truth.",
    "Verdict accuracy: of the final prediction, good or defective. Recall: fraction of defective photos predicted as "
    "defective. False alarms: fraction of good photos predicted as defective. By score: accuracy of the calibrated "
    "probability alone, at 0.5. In hindsight: accuracy at the best threshold for the class, chosen with the ground "
    "truth. Answer accuracy: of the language model's first yes or no, before the score may overrule it; an answer "
    "without yes or no is wrong. Position: of the photos with a mask that the answer correctly calls defective, the "
    "fraction where the first position in the answer is that of the centre of a marked defect. Position (cell): the "
    "same, where that cell of the 3 x 3 grid contains any part of a defect. An answer without a position is wrong in "
    "both.",
)


def title_of(shots: int) -> str:
    """A protocol's name."""
    return f"{shots}-shot" if shots else "Zero-shot"


def results_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """A row per cell, by shots, round and class: counts and metrics."""
    rows = [
        {
            "shots": result.cell.shots,
            "round": result.cell.round,
            "class": result.cell.class_name,
            "photos": len(result.photos),
            "with_defect": sum(photo.is_anomalous for photo in result.photos),
            **{name: getattr(result, name) for name in CELL_COLUMNS},
            **result.metrics,
        }
        for result in results
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))
    return frame.sort_values(["shots", "round", "class"], ignore_index=True)


@dataclass(frozen=True)
class Protocol:
    """All classes and rounds with K references; ``frame`` is :func:`results_frame` of the results."""

    shots: int
    results: Sequence[CellResult]
    frame: pd.DataFrame
    published: Sequence[Published] = ()

    @property
    def rounds(self) -> list[int]:
        """The rounds by number."""
        return sorted(self.frame["round"].unique().tolist())

    def of_class(self, name: str) -> dict[str, Spread]:
        """A class's metrics over rounds."""
        return _spreads(self.frame.loc[self.frame["class"] == name, list(METRICS)])

    def mean(self) -> dict[str, Spread]:
        """The metrics' means over classes, over rounds; and the best accuracy with one threshold for all classes."""
        by_round = self.frame.groupby("round")[list(METRICS)].mean()
        for number in by_round.index:
            cells = [result.photos for result in self.results if result.cell.round == number]
            scores = [([p.score for p in photos], [p.is_anomalous for p in photos]) for photos in cells]
            by_round.loc[number, HINDSIGHT] = hindsight_accuracy(scores)
        return _spreads(by_round)

    def used(self, metrics: Iterable[str]) -> list[str]:
        """The metrics that any class has; the first one if none has any."""
        names = list(metrics)
        return [name for name in names if self.frame[name].notna().any()] or names[:1]

    def table(self, metrics: dict[str, str]) -> pd.DataFrame:
        """Formatted percentages: a row per class, then the mean."""
        first = self.frame[self.frame["round"] == self.rounds[0]]
        table = first[["class", "photos", "with_defect"]].rename(columns={"with_defect": "with a defect"})
        table.loc["mean"] = ["mean", *table[["photos", "with a defect"]].sum()]
        rows = [*(self.of_class(name) for name in first["class"]), self.mean()]
        columns = {metrics[key]: [percent(row[key]) for row in rows] for key in self.used(metrics)}
        return table.astype(str).assign(**columns)

    def beside_published(self, config: str) -> pd.DataFrame:
        """Formatted percentages of this run, and below it the published ones."""
        columns = [key for key in self.used(METRICS) if any(key in other.metrics for other in self.published)]
        this_run = Published(f"this run ({config})", "few-shot" if self.shots else "see above", "", self.mean())
        return pd.DataFrame(
            {"method": row.method, "protocol": row.protocol}
            | {METRICS[key]: percent(row.metrics.get(key, Spread(None))) for key in columns}
            for row in (this_run, *self.published)
        )

    def as_json(self) -> dict[str, Any]:
        """Means, and every class with each round and photo; scores and metrics are 0..1."""
        means = self.mean()
        hindsight = asdict(means.pop(HINDSIGHT))
        classes = [
            {
                "class": name,
                **_mean_and_std(self.of_class(name)),
                "rounds": [_cell_json(result) for result in self.results if result.cell.class_name == name],
            }
            for name in sorted(self.frame["class"].unique())
        ]
        about = {"shots": self.shots, "rounds": self.rounds, **_mean_and_std(means), HINDSIGHT: hindsight}
        return about | {"classes": classes, "published": [asdict(other) for other in self.published]}


def _spreads(rounds: pd.DataFrame) -> dict[str, Spread]:
    """Each column's mean and, of two rounds or more, its standard deviation; NaN is left out."""
    known = {name: rounds[name].dropna() for name in rounds}
    return {
        name: Spread(values.mean() if len(values) else None, values.std(ddof=0) if len(values) > 1 else None)
        for name, values in known.items()
    }


def _mean_and_std(metrics: dict[str, Spread]) -> dict[str, Any]:
    return {part: {key: getattr(value, part) for key, value in metrics.items()} for part in ("mean", "std")}


def _cell_json(result: CellResult) -> dict[str, Any]:
    columns = {name: getattr(result, name) for name in ("references", "metrics", *CELL_COLUMNS)}
    return {"round": result.cell.round, **columns, "photos": [asdict(photo) for photo in result.photos]}


@dataclass(frozen=True)
class Report:
    """Everything that is written; ``published`` by the number of references, ``dataset`` the official one's name."""

    provenance: Provenance
    results: Sequence[CellResult]
    dataset: str | None = None
    published: dict[int, list[Published]] = field(default_factory=dict)

    @property
    def protocols(self) -> list[Protocol]:
        """The results by their number of references, in ascending order."""
        found = []
        for shots, frame in results_frame(self.results).groupby("shots"):
            own = [result for result in self.results if result.cell.shots == shots]
            found.append(Protocol(shots, own, frame, self.published.get(shots, ())))
        return found


def as_markdown(report: Report) -> str:
    """A page: the provenance, and for each number of references a row per class."""
    about = report.provenance
    lines = [f"# {', '.join(title_of(one.shots) for one in report.protocols)}: {about.config}", ""]
    lines += about.lines()
    for protocol in report.protocols:
        lines += ["", f"## {title_of(protocol.shots)}", ""]
        if protocol.shots:
            rounds = protocol.rounds
            lines += [f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}: {', '.join(map(str, rounds))}.", ""]
            if len(protocol.results) == 1:
                lines[-2] += f" References: {', '.join(protocol.results[0].references)}."
        for metrics in (MAP_METRICS, VERDICT_METRICS):
            table = protocol.table(metrics)
            table.iloc[-1, 0] = "**mean**"
            lines += [*markdown_table(table, texts=1), ""]
        hindsight = percent(protocol.mean()[HINDSIGHT])
        lines += [f"The best threshold for all classes together, in hindsight: {hindsight} (mean over classes)."]
        if protocol.published:
            lines += ["", f"Beside published means on {report.dataset}:", ""]
            lines += [*markdown_table(protocol.beside_published(about.config), texts=2), ""]
            lines += [f"* {source}" for source in dict.fromkeys(other.source for other in protocol.published)]
    return "\n".join([*lines, "", MEANING[0], "", MEANING[1]]) + "\n"


def percent(value: Spread) -> str:
    """A mean in percent, with its standard deviation where there is one."""
    if value.mean is None:
        return UNDEFINED
    text = f"{100 * value.mean:.1f}"
    return text if value.std is None else f"{text} ± {100 * value.std:.1f}"


def markdown_table(table: pd.DataFrame, texts: int) -> list[str]:
    """The lines of a table; all but the first ``texts`` columns are aligned to the right."""
    rule = "|" + "---|" * texts + "--:|" * (len(table.columns) - texts)
    header, *rows = ("| " + " | ".join(cells) + " |" for cells in (table.columns, *table.to_numpy().tolist()))
    return [header, rule, *rows]


def write_texts(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes files by name atomically into a folder, CSV with the mark that Excel needs; raises OSError."""
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8-sig" if name.endswith(".csv") else "utf-8")
    return [folder / name for name in texts]


def write_report(folder: Path, report: Report) -> list[Path]:
    """Writes results.json, .md and per_class.csv (metrics 0..1) atomically into a folder; raises OSError."""
    content = {"facts": asdict(report.provenance), "protocols": [one.as_json() for one in report.protocols]}
    frame = results_frame(report.results)
    texts = {
        "results.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "results.md": as_markdown(report),
        "per_class.csv": frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"),
    }
    return write_texts(folder, texts)
