"""A run's numbers, a JSON object a line: to be read while the run goes on, and after it was killed."""

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to ``metrics.jsonl`` in the run's folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"

    def write(self, kind: str, step: int, **values: float) -> None:
        """One line: what kind of numbers (``train``, ``validation``), at which step, and the numbers."""
        line: dict[str, Any] = {
            "kind": kind,
            "step": step,
            **{key: round(value, 6) for key, value in values.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
