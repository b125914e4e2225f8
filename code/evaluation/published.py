"""Names of the metrics, and published numbers to compare with (published.yaml)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.files import read_yaml

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


@dataclass(frozen=True)
class Spread:
    """A mean and, of two rounds or more, the standard deviation (divided by the number of rounds)."""

    mean: float | None
    std: float | None = None


@dataclass(frozen=True)
class Published:
    """One method's numbers, 0..1, by the keys of ``METRICS``; unpublished ones are absent."""

    method: str
    protocol: str
    source: str
    metrics: dict[str, Spread]


@cache
def table() -> dict[str, Any]:
    """The content of published.yaml."""
    return read_yaml(Path(__file__).with_name("published.yaml"))


def official_dataset(kind: str, records: Sequence[ImageRecord]) -> str | None:
    """The key in ``table()["datasets"]`` with these records' layout, classes and number of test photos, if any."""
    names = sorted({record.class_name for record in records})
    photos = sum(record.split == "test" for record in records)
    for key, entry in table()["datasets"].items():
        if entry["kind"] == kind and sorted(entry["classes"]) == names and entry["test_photos"] == photos:
            return key
    return None


def published(dataset: str, shots: int) -> list[Published]:
    """The published numbers for a data set and a number of references."""
    return [
        Published(
            row["method"],
            row["protocol"],
            table()["sources"][row["source"]]["text"],
            {key: Spread(*(value / 100 for value in row[key])) for key in METRICS if key in row},
        )
        for row in table()["rows"]
        if (row["dataset"], row["shots"]) == (dataset, shots)
    ]
