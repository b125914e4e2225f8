"""A run's metrics: one JSON object per line, readable during the run and after a kill, and TensorBoard's events."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.files import replacing

FILE = "metrics.jsonl"
COLUMNS = 4  # of curves


class MetricsLog:
    """Appends to ``metrics.jsonl`` and to TensorBoard's events (``training.log``).

    Args:
        start: the step that the run resumes from; lines of later steps, written before it was killed, are removed.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / FILE
        lines = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= start]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
        board = resolve(config.training.log) if config.training.log else folder / "tensorboard"
        self.board = SummaryWriter(str(board), purge_step=start + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes the kind of numbers (``train``, ``validation``), their step, and the numbers."""
        line = {"kind": kind, "step": step} | {key: round(value, 6) for key, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in values.items():
            self.board.add_scalar(f"{kind}/{key}", value, step)

    def write_picture(self, step: int, path: Path) -> None:
        """Passes a PNG on to TensorBoard."""
        with Image.open(path) as picture:
            self.board.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, without incomplete ones."""
    path = folder / FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def draw_curves(folder: Path) -> None:
    """Draws ``curves.png``: each number of ``metrics.jsonl`` over the steps; held-back photos as dots."""
    import pandas as pd
    from matplotlib.figure import Figure

    table = pd.DataFrame(read_metrics(folder)).drop(columns="samples_per_second").pivot(index="step", columns="kind")
    names = table.columns.unique(0)
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.6 * rows), layout="constrained")
    for position, name in enumerate(names, start=1):
        panel = figure.add_subplot(rows, COLUMNS, position, title=name.replace("_", " "))
        table[name].dropna(axis="columns", how="all").plot(ax=panel, style={"validation": "o"}, xlabel="")
    with replacing(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=90, format="png")
