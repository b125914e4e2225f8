"""Weights & Biases, MLflow or trackio for a run's numbers; each is installed and configured as its own pages say."""

from importlib import import_module
from pathlib import Path
from typing import Any

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError


class Tracker:
    """A run of ``training.tracker``; without one, nothing is passed on.

    Raises:
        UserError: that library is not installed.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        self.name = name = config.training.tracker
        self._library: Any = None
        try:
            if name:
                self._library = import_module(name)
        except ImportError as error:
            raise UserError(f"training.tracker: {name} is not installed; pip install {name}") from error
        if name == "mlflow":
            self._library.start_run(run_name=config.name)
        elif name:
            self._library.init(project="anomalygpt", name=config.name, config=config.model_dump(mode="json"))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Passes on numbers of a kind (``train``, ``validation``)."""
        named = {f"{kind}/{key}": value for key, value in values.items()}
        if self.name == "mlflow":
            self._library.log_metrics(named, step)
        elif self.name:
            self._library.log(named, step=step)

    def write_picture(self, step: int, path: Path) -> None:
        """Passes on a PNG."""
        if self.name == "mlflow":
            self._library.log_artifact(str(path))
        elif self.name:
            self._library.log({"samples": self._library.Image(str(path))}, step=step)
