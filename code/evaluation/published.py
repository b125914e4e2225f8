"""Published numbers for the protocol that was measured; the table is data (published.yaml)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from anomalygpt.datasets.records import ImageRecord

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
    """One method's numbers, 0..1, by the keys of ``METRICS``; those that were not published are absent."""

    method: str
    protocol: str
    source: str
    metrics: dict[str, Spread]


def official_dataset(kind: str, records: Sequence[ImageRecord]) -> str | None:
    """The official data set that these photos are the whole test split of: a key of the table, None for other data.

    Layout, classes and the number of test photos must all be the official ones.
    """
    names = sorted({record.class_name for record in records})
    photos = sum(record.split == "test" for record in records)
    for key, facts in _table()["datasets"].items():
        if facts["kind"] == kind and sorted(facts["classes"]) == names and facts["test_photos"] == photos:
            return key
    return None


def title(dataset: str) -> str:
    """A data set's name as people write it."""
    return _table()["datasets"][dataset]["title"]


def published(dataset: str, shots: int) -> list[Published]:
    """What was published for a data set and a number of references."""
    return [
        Published(
            row["method"],
            row["protocol"],
            _table()["sources"][row["source"]]["text"],
            {key: Spread(*(value / 100 for value in row[key])) for key in METRICS if key in row},
        )
        for row in _table()["rows"]
        if (row["dataset"], row["shots"]) == (dataset, shots)
    ]


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
