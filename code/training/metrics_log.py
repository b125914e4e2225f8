"""A run's numbers: a JSON object a line, readable while the run goes on or after it was killed; and TensorBoard's."""

import json
from pathlib import Path
from typing import Any

from anomalygpt.files import replacing

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard's events in the run's folder.

    Args:
        start: the step that a resumed run goes on from; what the killed run wrote after it is taken out.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / FILE
        self._drop_after(start)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """One line: what kind of numbers (``train``, ``validation``), at which step, and the numbers."""
        line: dict[str, Any] = {"kind": kind, "step": step, **{key: round(value, 6) for key, value in values.items()}}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Writes out what TensorBoard still holds back."""
        self._board.close()

    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_metrics(self.path.parent) if line["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line that was cut off is left out."""
    path = folder / FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
