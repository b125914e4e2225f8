"""Results as a table for people and as JSON for programs, with what it takes to make them again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomalygpt.evaluation.metrics import mean_known
from anomalygpt.evaluation.protocol import CategoryResult
from anomalygpt.files import replacing

METRICS = {
    "image_auroc": "image-AUROC",
    "pixel_auroc": "pixel-AUROC",
    "verdict_accuracy": "verdict accuracy",
    "answer_accuracy": "answer accuracy",
}
ALIGNMENT = "|---|--:|--:|" + "--:|" * len(METRICS)
MEANING = (
    "Percentages; the mean is over classes. image-AUROC: of each map's maximum. pixel-AUROC: over all pixels of the "
    "class's test photos together, at the map's size. verdict accuracy: share of photos of which the user is told the "
    "truth: the answer's yes or no, else whether the map has a region above its threshold. answer accuracy: by the "
    "answer's words alone; neither yes nor no is wrong."
)


@dataclass(frozen=True)
class RunFacts:
    """How the numbers were made.

    Attributes:
        commit: of the code, with ``-dirty`` where files were changed since; None outside a checkout.
        geometry: how photos are brought to the model.
        mask_rule: how masks are brought to the map's size, in words.
        map_size: side of the measured maps, in pixels.
    """

    command: str
    config: str
    commit: str | None
    geometry: str
    mask_rule: str
    map_size: int
    shots: int
    round: int
    device: str


def as_json(facts: RunFacts, results: Sequence[CategoryResult]) -> dict[str, Any]:
    """Facts, means over the classes, and every class with each of its photos; scores and metrics are 0..1."""
    return {
        "facts": asdict(facts),
        "mean": {key: mean_known([getattr(result, key) for result in results]) for key in METRICS},
        "classes": [asdict(result) for result in results],
    }


def as_markdown(facts: RunFacts, results: Sequence[CategoryResult]) -> str:
    """A page: the facts, and a row a class."""
    title = f"{facts.shots}-shot" if facts.shots else "Zero-shot"
    lines = [
        f"# {title}: {facts.config}",
        "",
        f"* command: `{facts.command}`",
        f"* commit: {facts.commit or 'unknown'}; device: {facts.device}",
        f"* references: {_references(facts, results)}",
        f"* geometry of photos: {facts.geometry}; maps measured at {facts.map_size} x {facts.map_size}",
        f"* masks: {facts.mask_rule}",
        "",
        *_table(results),
        "",
        MEANING,
    ]
    return "\n".join(lines) + "\n"


def _references(facts: RunFacts, results: Sequence[CategoryResult]) -> str:
    if not facts.shots:
        return "none; text map"
    names = {result.references for result in results}
    listed = f": {', '.join(results[0].references)}" if len(names) == 1 else ""
    return f"{facts.shots} good training photos a class, round {facts.round}{listed}"


def _table(results: Sequence[CategoryResult]) -> list[str]:
    header = "| class | photos | with a defect | " + " | ".join(METRICS.values()) + " |"
    rows = [
        _row(
            result.class_name,
            [len(result.photos), sum(photo.is_anomalous for photo in result.photos)],
            [getattr(result, key) for key in METRICS],
        )
        for result in results
    ]
    counts = [
        sum(len(result.photos) for result in results),
        sum(photo.is_anomalous for result in results for photo in result.photos),
    ]
    means = [mean_known([getattr(result, key) for result in results]) for key in METRICS]
    return [header, ALIGNMENT, *rows, _row("**mean**", counts, means)]


def _row(name: str, counts: Sequence[int], metrics: Sequence[float | None]) -> str:
    cells = [name, *map(str, counts), *("–" if value is None else f"{100 * value:.1f}" for value in metrics)]
    return "| " + " | ".join(cells) + " |"


def write_report(folder: Path, facts: RunFacts, results: Sequence[CategoryResult]) -> tuple[Path, Path]:
    """Writes ``results.json`` and ``results.md`` into a folder, which is made; each appears complete or not at all.

    Raises:
        OSError: the folder can't be written.
    """
    data, page = folder / "results.json", folder / "results.md"
    _write(data, json.dumps(as_json(facts, results), indent=1, ensure_ascii=False) + "\n")
    _write(page, as_markdown(facts, results))
    return data, page


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
