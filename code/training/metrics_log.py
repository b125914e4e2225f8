"""A run's metrics: one JSON object per line, readable during the run and after a kill; TensorBoard's events; and
Weights & Biases, MLflow or trackio, each installed and configured as its own pages say."""

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError, first_line
from anomalygpt.files import read_lines, replacing, write_files

FILE = "metrics.jsonl"
COLUMNS = 4  # of curves


class MetricsLog:
    """Appends to ``metrics.jsonl``, to TensorBoard's events (``training.log``) and to ``training.tracker``.

    Lines of steps after ``start``, written before a resumed run was killed, are removed. Raises :class:`UserError`
    where the tracker's library is not installed or can't start.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.tracker = folder / FILE, config.training.tracker
        self._library: Any = _started(self.tracker, config) if self.tracker else None
        lines = [json.dumps(line) + "\n" for line in read_lines(folder / FILE) if line["step"] <= start]
        write_files(folder, {FILE: "".join(lines)})
        board = resolve(config.training.log) if config.training.log else folder / "tensorboard"
        self._board = SummaryWriter(str(board), purge_step=start + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes the kind of numbers (``train``, ``validation``), their step, and the numbers."""
        line = {"kind": kind, "step": step} | {key: round(value, 6) for key, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        named = {f"{kind}/{key}": value for key, value in values.items()}
        for key, value in named.items():
            self._board.add_scalar(key, value, step)
        if self.tracker == "mlflow":
            self._library.log_metrics(named, step)
        elif self.tracker:
            self._library.log(named, step=step)

    def write_picture(self, step: int, path: Path) -> None:
        """Passes a PNG on to TensorBoard and the tracker."""
        with Image.open(path) as picture:
            self._board.add_image("samples", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        if self.tracker == "mlflow":
            self._library.log_artifact(str(path))
        elif self.tracker:
            self._library.log({"samples": self._library.Image(str(path))}, step=step)

    def close(self) -> None:
        """Ends what TensorBoard and the tracker keep of the run."""
        self._board.close()
        if self.tracker:
            (self._library.end_run if self.tracker == "mlflow" else self._library.finish)()


def _started(name: str, config: ExperimentConfig) -> Any:
    """The tracker's library, with a run begun."""
    try:
        library = import_module(name)
        about = {"project": "anomalygpt", "name": config.name, "config": config.model_dump(mode="json")}
        begin, given = (library.start_run, {"run_name": config.name}) if name == "mlflow" else (library.init, about)
        begin(**given)
    except Exception as error:  # whatever the library raises without a login or a server
        absent = isinstance(error, ImportError)
        what = f"is not installed; pip install {name}" if absent else f"can't start ({first_line(error)})"
        raise UserError(f"training.tracker: {name} {what}") from error
    return library


def draw_curves(folder: Path) -> None:
    """Draws ``curves.png``: each number of ``metrics.jsonl`` over the steps; held-back photos as dots."""
    import pandas as pd
    from matplotlib.figure import Figure

    table = pd.DataFrame(read_lines(folder / FILE)).drop(columns="samples_per_second")
    names = [name for name in table.columns if name not in ("kind", "step") and table[name].any()]  # of what is trained
    rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(3.5 * COLUMNS, 2.6 * rows), layout="constrained")
    for position, name in enumerate(names, start=1):
        panel = figure.add_subplot(rows, COLUMNS, position, title=name.replace("_", " "))
        for kind, found in table.dropna(subset=name).groupby("kind"):
            panel.plot(found["step"], found[name], "-" if kind == "train" else "o--", markersize=4, label=kind)
        panel.legend()
    with replacing(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=90, format="png")
