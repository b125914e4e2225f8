"""Accuracy by task as a page, a table for papers, JSON and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomalygpt.evaluation.choices import METHODS, Answer, Method, mmad_average, task_score, tasks_of
from anomalygpt.evaluation.report import NOTHING, latex_text, write_text

MEANING = (
    "Accuracy in percent. By likelihood: the option whose text, or letter, has the highest mean log-likelihood a "
    "token after the question; letters and generated answers are asked with the options listed. A generated answer "
    "that names no option is wrong. Anomaly detection is the mean over good and anomalous photos, the average that "
    "over tasks within each data set and then over data sets, as in MMAD. Chance: what guessing gives."
)


@dataclass(frozen=True)
class ChoicesFacts:
    """How the numbers were made; see ``RunFacts``."""

    command: str
    config: str
    commit: str | None
    questions: str
    references: str
    seed: int
    device: str
    processes: int
    trained_on: tuple[str, ...]
    seconds_per_photo: float | None
    peak_memory: int


@dataclass(frozen=True)
class ChoicesReport:
    """All answers, with how they were made."""

    facts: ChoicesFacts
    rows: tuple[Answer, ...]
    methods: tuple[Method, ...]

    def table(self) -> list[tuple[str, int, float, list[float | None]]]:
        """For each task, and at last the average: name, questions, chance, and a score a method; 0..1."""
        lines = []
        for task in tasks_of(self.rows):
            own = [row for row in self.rows if row.task == task]
            scores = [task_score(self.rows, task, method).accuracy for method in self.methods]
            lines.append((task, len(own), chance(own), scores))
        averages = [mmad_average(self.rows, method) for method in self.methods]
        return [*lines, ("average", len(self.rows), chance(self.rows), averages)]

    @property
    def unclear(self) -> int:
        """How many generated answers name no option."""
        return sum("generated" in row.chosen and row.chosen["generated"] is None for row in self.rows)


def chance(rows: Sequence[Answer]) -> float:
    """The accuracy of guessing."""
    return sum(1 / row.options for row in rows) / len(rows)


def as_json(report: ChoicesReport) -> dict[str, Any]:
    """Facts, scores by task, and every answer."""
    return {
        "facts": asdict(report.facts),
        "unclear_answers": report.unclear,
        "tasks": [
            {"task": task, "questions": count, "chance": guess, **dict(zip(report.methods, scores, strict=True))}
            for task, count, guess, scores in report.table()
        ],
        "answers": [asdict(row) for row in report.rows],
    }


def as_markdown(report: ChoicesReport) -> str:
    """A page: the facts, and a row a task."""
    facts = report.facts
    spent = "" if facts.seconds_per_photo is None else f"; {facts.seconds_per_photo:.2f} s a photo and process"
    header = ["task", "questions", "chance", *(METHODS[method] for method in report.methods)]
    lines = [
        f"# Multiple choice: {facts.config}",
        "",
        f"* command: `{facts.command}`",
        f"* commit: {facts.commit or 'unknown'}; device: {facts.device}; processes: {facts.processes}{spent}",
        f"* peak memory of the first process: {facts.peak_memory / 1e9:.2f} GB",
        f"* questions: {facts.questions}",
        *(f"* trained on: {line}" for line in facts.trained_on),
        f"* references: {facts.references}; seed {facts.seed}",
        *([f"* generated answers that name no option: {report.unclear}"] if "generated" in report.methods else []),
        "",
        "| " + " | ".join(header) + " |",
        "|---|" + "--:|" * (len(header) - 1),
    ]
    for task, count, guess, scores in report.table():
        name = f"**{task}**" if task == "average" else task
        lines.append("| " + " | ".join([name, str(count), _percent(guess), *map(_percent, scores)]) + " |")
    return "\n".join([*lines, "", MEANING]) + "\n"


def as_latex(report: ChoicesReport) -> str:
    """A table for ``\\usepackage{booktabs}``."""
    header = ["task", "questions", "chance", *(METHODS[method] for method in report.methods)]
    rows = [
        " & ".join([latex_text(task), str(count), _percent(guess), *map(_percent, scores)]).replace(NOTHING, "--")
        + r" \\"
        for task, count, guess, scores in report.table()
    ]
    caption = latex_text(f"Multiple-choice accuracy of {report.facts.config}, in percent.")
    body = "\n".join([*rows[:-1], "\\midrule", rows[-1]])
    return (
        f"% needs \\usepackage{{booktabs}}\n% {report.facts.command}\n\n"
        f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n"
        f"\\toprule\n{' & '.join(map(latex_text, header))} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


def as_csv(report: ChoicesReport) -> str:
    """A row a question."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["question", "dataset", "task", "good", "answer", *report.methods, "generated_answer"])
    for row in report.rows:
        chosen = [row.chosen[method] or "" for method in report.methods]
        writer.writerow([row.key, row.dataset, row.task, int(row.is_good), row.right, *chosen, row.generated])
    return file.getvalue()


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def write_report(folder: Path, report: ChoicesReport) -> list[Path]:
    """Writes results.json, .md, .tex and answers.csv into a folder; each appears whole or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    texts = {
        "results.json": json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n",
        "results.md": as_markdown(report),
        "results.tex": as_latex(report),
        "answers.csv": as_csv(report),
    }
    return [write_text(folder / name, text) for name, text in texts.items()]
