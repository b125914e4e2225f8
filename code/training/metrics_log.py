"""A run's metrics: one JSON object per line, readable during the run and after a kill; and TensorBoard's events."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomalygpt.errors import UserError
from anomalygpt.files import replacing

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard's events in the run's folder.

    Numbers that a full disk has no room for are lost; that is logged once, and the run goes on.

    Args:
        board: the folder of TensorBoard's events; None: ``tensorboard`` in the run's.
        start: the step that the run resumes from; lines of later steps, written before it was killed, are removed.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: Path, start: int = 0, board: Path | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / FILE
        self._error_logged = False
        text = "".join(json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= start)
        try:
            if not self.path.is_file() or text != self.path.read_text(encoding="utf-8"):  # a full disk takes no copy
                with replacing(self.path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            self._board = SummaryWriter(str(board or folder / "tensorboard"), purge_step=start + 1)
        except OSError as error:
            raise UserError(f"{folder}: can't be written ({error}); make room, then start again") from error

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes a line: the kind of numbers (``train``, ``validation``), their step, and the numbers."""
        line = {"kind": kind, "step": step} | {key: round(value, 6) for key, value in values.items()}
        text = (json.dumps(line) + "\n").encode()
        try:
            with self.path.open("ab", buffering=0) as file:  # a buffer would be written again when the file is closed
                before = file.tell()
                if file.write(text) < len(text):  # no half line before the next one
                    file.truncate(before)
                    raise OSError("no room for a line")
            for key, value in values.items():
                self._board.add_scalar(f"{kind}/{key}", value, step)
        except OSError as error:
            if not self._error_logged:
                logger.error("%s: numbers are lost (%s); the run goes on", self.path.parent, error)
            self._error_logged = True

    def close(self) -> None:
        """Writes out TensorBoard's buffer, as far as the disk has room."""
        with suppress(OSError):
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without incomplete ones."""
    path = folder / FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines
