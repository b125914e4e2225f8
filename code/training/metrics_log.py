"""A run's numbers: a JSON object a line, readable while the run goes on or after it was killed; and TensorBoard's."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from anomalygpt.errors import UserError
from anomalygpt.files import replacing

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard's events in the run's folder.

    Numbers that a full disk does not take are lost; that is told once, and the run goes on.

    Args:
        start: the step that a resumed run goes on from; what the killed run wrote after it is taken out.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / FILE
        self._complained = False
        try:
            self._drop_after(start)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        except OSError as error:
            raise UserError(f"{folder}: can't be written ({error}); make room, then start again") from error

    def write(self, kind: str, step: int, **values: float) -> None:
        """One line: what kind of numbers (``train``, ``validation``), at which step, and the numbers."""
        line: dict[str, Any] = {"kind": kind, "step": step, **{key: round(value, 6) for key, value in values.items()}}
        try:
            _append(self.path, json.dumps(line) + "\n")
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)
        except OSError as error:
            self._complain(error)

    def close(self) -> None:
        """Writes out what TensorBoard still holds back."""
        try:
            self._board.close()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.error("%s: numbers are lost (%s); the run goes on", self.path.parent, error)
        self._complained = True

    def _drop_after(self, step: int) -> None:
        kept = [line for line in read_metrics(self.path.parent) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if self.path.is_file() and text == self.path.read_text(encoding="utf-8"):  # a full disk takes no copy
            return
        with replacing(self.path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _append(path: Path, text: str) -> None:
    """Adds a line whole, or leaves the file as it was."""
    left = text.encode()
    with path.open("ab", buffering=0) as file:  # a buffer would be written once more when the file is closed
        before = file.tell()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            os.truncate(path, before)
            raise


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; one that was cut off is left out."""
    path = folder / FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
