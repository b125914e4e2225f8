"""Results as a page, a LaTeX table, JSON and CSV, with what it takes to repeat them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomalygpt.evaluation.cells import CellResult
from anomalygpt.evaluation.metrics import hindsight_accuracy
from anomalygpt.evaluation.pixels import PRO_LIMIT
from anomalygpt.evaluation.provenance import EvalProvenance
from anomalygpt.evaluation.published import MAP_METRICS, METRICS, VERDICT_METRICS, Published, Spread
from anomalygpt.files import replacing

NOTHING = "–"
HINDSIGHT = "one_threshold_in_hindsight"
MEANING = (
    "Percentages; the mean is over classes, ± is the standard deviation over rounds. Image metrics are of each map's "
    "score; pixel metrics are over all pixels of a class's test photos together; AUPRO is integrated up to a "
    f"false-positive rate of {PRO_LIMIT}. F1-max is at the best threshold in hindsight.",
    "Verdict: what the user is told. Recall is the share of defective photos that are called defective, false "
    "alarms that of good ones. By score: right verdicts if the calibrated probability alone decided; in hindsight: "
    "by the best threshold of the class, which nobody knows beforehand. Answer accuracy: by the language model's "
    "own yes or no, before a score set it right; neither yes nor no is wrong. Position, over rightful yeses about "
    "photos with a mask: the first place named is that of a marked defect's centre; (cell): its ninth of the photo "
    "holds part of a defect. A yes without a place is wrong in both.",
)


def title_of(shots: int) -> str:
    """A protocol's name."""
    return f"{shots}-shot" if shots else "Zero-shot"


def results_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """A row per cell, by shots, round and class: counts, metrics and their bounds."""
    rows = [
        {
            "shots": result.cell.shots,
            "round": result.cell.round,
            "class": result.cell.class_name,
            "photos": len(result.photos),
            "with_defect": result.anomalous,
            **{name: getattr(result, name) for name in ("masked_photos", "regions", "no_verdict", "placed")},
            **result.metrics,
            **{f"{name}_bound": bound for name, bound in result.bounds.items()},
        }
        for result in results
    ]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(METRICS, float))
    return frame.sort_values(["shots", "round", "class"], ignore_index=True)


@dataclass(frozen=True)
class Protocol:
    """All classes and rounds with K references.

    Attributes:
        results: the cells, round after round.
        frame: a row per cell, see :func:`results_frame`.
        published: numbers of others for this protocol.
    """

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
        """The metrics' means over classes, over rounds; with that of one threshold for all classes in hindsight."""
        by_round = self.frame.groupby("round")[list(METRICS)].mean()
        for number in by_round.index:
            cells = [result.photos for result in self.results if result.cell.round == number]
            scores = [([p.score for p in photos], [p.is_anomalous for p in photos]) for photos in cells]
            by_round.loc[number, HINDSIGHT] = hindsight_accuracy(scores)
        return _spreads(by_round)

    def used(self, metrics: Iterable[str]) -> list[str]:
        """The metrics that any class has; a column that is empty throughout is left out."""
        wanted = list(metrics)
        return [metric for metric in wanted if self.frame[metric].notna().any()] or wanted[:1]

    def table(self, metrics: dict[str, str]) -> pd.DataFrame:
        """Formatted percentages: a row per class, and at last the mean."""
        first = self.frame[self.frame["round"] == self.rounds[0]]
        table = first[["class", "photos", "with_defect"]].rename(columns={"with_defect": "with a defect"})
        table.loc["mean"] = ["mean", *table[["photos", "with a defect"]].sum()]
        rows = [*(self.of_class(name) for name in first["class"]), self.mean()]
        return table.astype(str).assign(
            **{metrics[key]: [percent(row[key]) for row in rows] for key in self.used(metrics)}
        )

    def beside_published(self, config: str) -> pd.DataFrame:
        """Formatted percentages of this run, and below it of others."""
        columns = [key for key in self.used(METRICS) if any(key in other.metrics for other in self.published)]
        ours = Published(f"this run ({config})", "few-shot" if self.shots else "see above", "", self.mean())
        return pd.DataFrame(
            {"method": one.method, "protocol": one.protocol}
            | {METRICS[key]: percent(one.metrics.get(key, Spread(None))) for key in columns}
            for one in (ours, *self.published)
        )


def _spreads(rounds: pd.DataFrame) -> dict[str, Spread]:
    """Each column's mean and, of two rounds or more, its standard deviation; NaN is left out."""
    known = {name: rounds[name].dropna() for name in rounds}
    return {
        name: Spread(values.mean() if len(values) else None, values.std(ddof=0) if len(values) > 1 else None)
        for name, values in known.items()
    }


@dataclass(frozen=True)
class Report:
    """All that is written.

    Attributes:
        dataset: the official data set's name, where it is one.
        published: numbers of others by the number of references.
    """

    provenance: EvalProvenance
    results: Sequence[CellResult]
    dataset: str | None = None
    published: dict[int, list[Published]] | None = None

    @property
    def protocols(self) -> list[Protocol]:
        """The results by their number of references, in ascending order."""
        published = self.published or {}
        return [
            Protocol(shots, [one for one in self.results if one.cell.shots == shots], own, published.get(shots, ()))
            for shots, own in results_frame(self.results).groupby("shots")
        ]


# -- formats -----------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Provenance, means, and every class with each round and photo; scores and metrics are 0..1."""
    return {"facts": asdict(report.provenance), "protocols": [_protocol_json(one) for one in report.protocols]}


def _protocol_json(protocol: Protocol) -> dict[str, Any]:
    means = protocol.mean()
    hindsight = asdict(means.pop(HINDSIGHT))
    return {
        "shots": protocol.shots,
        "rounds": protocol.rounds,
        **_mean_and_std(means),
        HINDSIGHT: hindsight,
        "classes": [
            {
                "class": name,
                **_mean_and_std(protocol.of_class(name)),
                "rounds": [_cell_json(result) for result in protocol.results if result.cell.class_name == name],
            }
            for name in sorted(protocol.frame["class"].unique())
        ],
        "published": [asdict(other) for other in protocol.published],
    }


def _mean_and_std(metrics: dict[str, Spread]) -> dict[str, Any]:
    return {part: {key: getattr(value, part) for key, value in metrics.items()} for part in ("mean", "std")}


def _cell_json(result: CellResult) -> dict[str, Any]:
    names = ("references", "metrics", "bounds", "masked_photos", "regions", "no_verdict", "placed")
    photos = [asdict(photo) for photo in result.photos]
    return {"round": result.cell.round, **{name: getattr(result, name) for name in names}, "photos": photos}


def as_csv(report: Report) -> str:
    """A line per class and round, metrics 0..1, empty where they are not defined."""
    return results_frame(report.results).to_csv(index=False, float_format="%.6f", lineterminator="\n")


def as_markdown(report: Report) -> str:
    """A page: the provenance, and for each number of references a row per class."""
    about = report.provenance
    bound = max((bound for result in report.results for bound in result.bounds.values()), default=0)
    exact = f"exact within ± {100 * bound:.4f} points: there were too many pixels to keep" if bound else "exact"
    lines = [f"# {', '.join(title_of(one.shots) for one in report.protocols)}: {about.config}", ""]
    lines += [*(f"* **{warning}**" for warning in about.warnings), *about.lines(f"data: {about.data}")]
    lines += [*(f"* maps and masks: {line}" for line in about.maps), f"* AUPRO: {about.defects}"]
    lines += [f"* pixel metrics are {exact}"]
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


def as_latex(report: Report) -> str:
    """Tables for ``\\usepackage{booktabs}``: a row per class, and beside published numbers where there are any."""
    config = report.provenance.config
    tables = ["% needs \\usepackage{booktabs}", f"% {report.provenance.command}"]
    for protocol in report.protocols:
        title = title_of(protocol.shots)
        for metrics in (MAP_METRICS, VERDICT_METRICS):
            table = protocol.table(metrics).drop(columns=["photos", "with a defect"])
            tables.append(latex_table(table, f"{title} results of {config}, in percent."))
        if protocol.published:
            table = protocol.beside_published(config).drop(columns="protocol")
            table = pd.concat([table[1:], table[:1]])  # this run below the others
            caption = f"{title} results on {report.dataset} beside published ones, in percent."
            tables.append(latex_table(table, caption))
    return "\n\n".join(tables) + "\n"


def percent(value: Spread) -> str:
    """A mean in percent, with its standard deviation where there is one."""
    if value.mean is None:
        return NOTHING
    text = f"{100 * value.mean:.1f}"
    return text if value.std is None else f"{text} ± {100 * value.std:.1f}"


def markdown_table(table: pd.DataFrame, texts: int) -> list[str]:
    """The lines of a table; all but the first ``texts`` columns are aligned to the right."""
    rule = "|" + "---|" * texts + "--:|" * (len(table.columns) - texts)
    header, *rows = ("| " + " | ".join(cells) + " |" for cells in (table.columns, *table.to_numpy().tolist()))
    return [header, rule, *rows]


def latex_table(table: pd.DataFrame, caption: str) -> str:
    """A booktabs table whose last row is set apart."""
    header, *rows = (
        " & ".join(map(latex_text, cells)) + r" \\" for cells in (table.columns, *table.to_numpy().tolist())
    )
    lines = [r"\begin{table}", r"\centering", f"\\caption{{{latex_text(caption)}}}"]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule", header, r"\midrule"]
    lines += [*rows[:-1], r"\midrule", rows[-1], r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines)


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$"}
)


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(_LATEX)


def write_texts(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes files by name into a folder, each whole or not at all; raises OSError."""
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def write_report(folder: Path, report: Report) -> list[Path]:
    """Writes results.json, .md, .tex and per_class.csv into a folder; errors as of :func:`write_texts`."""
    texts = {
        "results.json": json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n",
        "results.md": as_markdown(report),
        "results.tex": as_latex(report),
        "per_class.csv": as_csv(report),
    }
    return write_texts(folder, texts)
