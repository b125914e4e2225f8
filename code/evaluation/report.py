"""Results as a page for people, a table for papers, JSON and CSV for programs, with what it takes to repeat them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomalygpt.evaluation.pixels import PRO_LIMIT
from anomalygpt.evaluation.published import Published
from anomalygpt.evaluation.results import (
    MAP_METRICS,
    METRICS,
    VERDICT_METRICS,
    CategoryResult,
    ShotsResult,
    Spread,
)
from anomalygpt.files import replacing

NOTHING = "–"
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


@dataclass(frozen=True)
class RunFacts:
    """How the numbers were made.

    Attributes:
        commit: of the code, with ``-dirty`` where files were changed since; None outside a checkout.
        data: the test data: kind and folder.
        references: which photos are, in words.
        maps: geometry of photos, pixels that are measured, and the masks' rule, in words, one a distinct setting.
        defects: what counts as one defect for AUPRO, in words.
        trained_on: a line a delta.
        warnings: what limits the numbers.
        seconds_per_photo: of one process, encoding, map, answer and counting together.
        peak_memory: of the first process, in bytes.
    """

    command: str
    config: str
    commit: str | None
    data: str
    references: str
    maps: tuple[str, ...]
    defects: str
    seed: int
    device: str
    processes: int
    trained_on: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds_per_photo: float | None
    peak_memory: int


@dataclass(frozen=True)
class Report:
    """All that is written. ``dataset`` is the official data set's name, and ``published`` by shots, where it is one."""

    facts: RunFacts
    by_shots: tuple[ShotsResult, ...]
    dataset: str | None = None
    published: dict[int, list[Published]] | None = None

    def others(self, shots: int) -> list[Published]:
        """Published numbers for a number of references."""
        return (self.published or {}).get(shots, [])


def title_of(shots: int) -> str:
    """A protocol's name."""
    return f"{shots}-shot" if shots else "Zero-shot"


# -- JSON --------------------------------------------------------------------------------------------------------------


def as_json(report: Report) -> dict[str, Any]:
    """Facts, means, and every class with each round and photo; scores and metrics are 0..1."""
    return {
        "facts": asdict(report.facts),
        "protocols": [_protocol_json(found, report.others(found.shots)) for found in report.by_shots],
    }


def _protocol_json(found: ShotsResult, others: Sequence[Published]) -> dict[str, Any]:
    return {
        "shots": found.shots,
        "rounds": found.rounds,
        "mean": {key: found.macro(key).mean for key in METRICS},
        "std": {key: found.macro(key).std for key in METRICS},
        "one_threshold_in_hindsight": asdict(found.one_threshold()),
        "classes": [_class_json(found, name) for name in found.class_names],
        "published": [asdict(other) for other in others],
    }


def _class_json(found: ShotsResult, name: str) -> dict[str, Any]:
    return {
        "class": name,
        "mean": {key: found.over_rounds(name, key).mean for key in METRICS},
        "std": {key: found.over_rounds(name, key).std for key in METRICS},
        "rounds": [_round_json(result) for result in found.of_class(name)],
    }


def _round_json(result: CategoryResult) -> dict[str, Any]:
    return {
        "round": result.cell.round,
        "references": list(result.references),
        "metrics": result.metrics,
        "bounds": result.bounds,
        "masked_photos": result.masked_photos,
        "regions": result.regions,
        "no_verdict": result.no_verdict,
        "placed": result.placed,
        "photos": [asdict(row) for row in result.rows],
    }


# -- CSV ---------------------------------------------------------------------------------------------------------------


def as_csv(report: Report) -> str:
    """A row a class and round, metrics 0..1, empty where they are not defined."""
    file = io.StringIO()
    counts = ("photos", "with_defect", "masked_photos", "regions", "no_verdict", "placed")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["shots", "round", "class", *counts, *METRICS, *(f"{key}_bound" for key in _bounded(report))])
    for found in report.by_shots:
        for result in sorted(found.results, key=lambda result: (result.cell.round, result.cell.class_name)):
            numbers = (len(result.rows), result.anomalous, result.masked_photos, result.regions)
            metrics = [_plain(result.metrics[key]) for key in METRICS]
            bounds = [_plain(result.bounds.get(key)) for key in _bounded(report)]
            cell = [found.shots, result.cell.round, result.cell.class_name]
            writer.writerow([*cell, *numbers, result.no_verdict, result.placed, *metrics, *bounds])
    return file.getvalue()


def _bounded(report: Report) -> list[str]:
    return [key for key in METRICS if any(key in r.bounds for found in report.by_shots for r in found.results)]


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


# -- Markdown ----------------------------------------------------------------------------------------------------------


def as_markdown(report: Report) -> str:
    """A page: the facts, and for each number of references a row a class."""
    facts = report.facts
    names = ", ".join(title_of(found.shots) for found in report.by_shots)
    lines = [f"# {names}: {facts.config}", ""]
    lines += [f"* **{warning}**" for warning in facts.warnings]
    lines += _facts(report)
    for found in report.by_shots:
        lines += ["", f"## {title_of(found.shots)}", ""]
        lines += _rounds(found)
        lines += _markdown_table(found, MAP_METRICS)
        lines += ["", *_markdown_table(found, VERDICT_METRICS), "", _one_threshold(found)]
        lines += _published_markdown(report, found)
    return "\n".join([*lines, "", MEANING[0], "", MEANING[1]]) + "\n"


def _facts(report: Report) -> list[str]:
    facts = report.facts
    bound = max(found.largest_bound() for found in report.by_shots)
    spent = "" if facts.seconds_per_photo is None else f"; {facts.seconds_per_photo:.2f} s a photo and process"
    return [
        f"* command: `{facts.command}`",
        f"* commit: {facts.commit or 'unknown'}; device: {facts.device}; processes: {facts.processes}{spent}",
        f"* peak memory of the first process: {facts.peak_memory / 1e9:.2f} GB",
        f"* data: {facts.data}",
        *(f"* trained on: {line}" for line in facts.trained_on),
        f"* references: {facts.references}; seed {facts.seed}",
        *(f"* maps and masks: {line}" for line in facts.maps),
        f"* AUPRO: {facts.defects}",
        f"* pixel metrics are counted in bins: the exact values lie within ± {100 * bound:.4f} points",
    ]


def _rounds(found: ShotsResult) -> list[str]:
    if not found.shots:
        return []
    rounds = found.rounds
    lines = [f"{len(rounds)} round{'s' if len(rounds) > 1 else ''}: {', '.join(map(str, rounds))}."]
    if len(rounds) == 1 and len(found.class_names) == 1:
        lines[0] += f" References: {', '.join(found.results[0].references)}."
    return [*lines, ""]


def _markdown_table(found: ShotsResult, metrics: dict[str, str]) -> list[str]:
    used = _used(found, metrics)
    header = ["class", "photos", "with a defect", *(metrics[key] for key in used)]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name in found.class_names:
        first = found.of_class(name)[0]
        values = [_percent(found.over_rounds(name, key)) for key in used]
        lines.append(_markdown_row(name, len(first.rows), first.anomalous, values))
    one_round = [found.of_class(name)[0] for name in found.class_names]
    photos, anomalous = sum(len(r.rows) for r in one_round), sum(r.anomalous for r in one_round)
    means = [_percent(found.macro(key)) for key in used]
    return [*lines, _markdown_row("**mean**", photos, anomalous, means)]


def _markdown_row(name: str, photos: int, anomalous: int, values: Sequence[str]) -> str:
    return "| " + " | ".join([name, str(photos), str(anomalous), *values]) + " |"


def _used(found: ShotsResult, metrics: dict[str, str]) -> list[str]:
    """The metrics that any class has; a column that is empty throughout is left out."""
    used = [key for key in metrics if any(result.metrics[key] is not None for result in found.results)]
    return used or list(metrics)[:1]


def _percent(value: Spread, digits: int = 1, plus_minus: str = " ± ") -> str:
    if value.mean is None:
        return NOTHING
    text = f"{100 * value.mean:.{digits}f}"
    return text if value.std is None else f"{text}{plus_minus}{100 * value.std:.{digits}f}"


def _one_threshold(found: ShotsResult) -> str:
    right = _percent(found.one_threshold())
    return f"The best threshold for all classes together, in hindsight: {right} (mean over classes)."


def _published_markdown(report: Report, found: ShotsResult) -> list[str]:
    others = report.others(found.shots)
    if not others:
        return []
    columns = _side_by_side(found, others)
    lines = ["", f"Beside published means on {report.dataset}:", ""]
    lines += ["| method | protocol | " + " | ".join(METRICS[key] for key in columns) + " |"]
    lines += ["|---|---|" + "--:|" * len(columns)]
    for name, protocol, values in _side_rows(report, found, others):
        cells = [_percent(values[key]) if key in values else NOTHING for key in columns]
        lines.append(f"| {name} | {protocol} | " + " | ".join(cells) + " |")
    return [*lines, "", *(f"* {source}" for source in dict.fromkeys(other.source for other in others))]


def _side_by_side(found: ShotsResult, others: Sequence[Published]) -> list[str]:
    return [key for key in _used(found, METRICS) if any(key in other.metrics for other in others)]


def _side_rows(
    report: Report, found: ShotsResult, others: Sequence[Published]
) -> list[tuple[str, str, dict[str, Spread]]]:
    measured = {key: found.macro(key) for key in METRICS}
    protocol = "few-shot" if found.shots else "see above"
    ours = (f"this run ({report.facts.config})", protocol, measured)
    return [ours, *((other.method, other.protocol, other.metrics) for other in others)]


# -- LaTeX -------------------------------------------------------------------------------------------------------------

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
)


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.translate(_LATEX)


def as_latex(report: Report) -> str:
    """Tables for ``\\usepackage{booktabs}``: a row a class, and beside published numbers where there are any."""
    tables = ["% needs \\usepackage{booktabs}", f"% {report.facts.command}"]
    for found in report.by_shots:
        for metrics in (MAP_METRICS, VERDICT_METRICS):
            tables.append(_latex_classes(report, found, metrics))
        if report.others(found.shots):
            tables.append(_latex_methods(report, found))
    return "\n\n".join(tables) + "\n"


def _latex_classes(report: Report, found: ShotsResult, metrics: dict[str, str]) -> str:
    used = _used(found, metrics)
    rows = [
        [latex_text(name), *(_percent(found.over_rounds(name, key), plus_minus=r" $\pm$ ") for key in used)]
        for name in found.class_names
    ]
    mean = ["mean", *(_percent(found.macro(key), plus_minus=r" $\pm$ ") for key in used)]
    caption = f"{title_of(found.shots)} results of {report.facts.config}, in percent."
    return _latex_table(caption, ["class", *(metrics[key] for key in used)], rows, mean)


def _latex_methods(report: Report, found: ShotsResult) -> str:
    others = report.others(found.shots)
    columns = _side_by_side(found, others)
    ours, *rest = [
        [latex_text(name), *(_percent(values[k], plus_minus=r" $\pm$ ") if k in values else "--" for k in columns)]
        for name, _, values in _side_rows(report, found, others)
    ]
    caption = f"{title_of(found.shots)} results on {report.dataset} beside published ones, in percent."
    return _latex_table(caption, ["method", *(METRICS[key] for key in columns)], rest, ours)


def _latex_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str]) -> str:
    body = "\n".join(" & ".join(cell.replace(NOTHING, "--") for cell in row) + r" \\" for row in rows)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{latex_text(caption)}}}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n\\toprule\n"
        f"{' & '.join(map(latex_text, header))} \\\\\n\\midrule\n{body}\n\\midrule\n"
        f"{' & '.join(cell.replace(NOTHING, '--') for cell in last)} \\\\\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}"
    )


# -- files -------------------------------------------------------------------------------------------------------------


def write_report(folder: Path, report: Report) -> list[Path]:
    """Writes results.json, .md, .tex and per_class.csv into a folder, which is made; each appears whole or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    data = json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n"
    texts = {
        "results.json": data,
        "results.md": as_markdown(report),
        "results.tex": as_latex(report),
        "per_class.csv": as_csv(report),
    }
    return [write_text(folder / name, text) for name, text in texts.items()]


def write_text(path: Path, text: str) -> Path:
    """Writes a file, whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
