"""Weights & Biases, MLflow or trackio for a run's numbers; each is installed and configured as its own pages say."""

from collections.abc import Callable
from importlib import import_module

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError

Tracker = Callable[[str, int, dict[str, float]], object]  # kind of numbers, step, numbers


def start_tracker(config: ExperimentConfig) -> Tracker:
    """Starts a run of ``training.tracker``. Raises :class:`UserError` where that library is not installed."""
    name = config.training.tracker
    if name is None:
        return lambda kind, step, values: None
    try:
        library = import_module(name)
    except ImportError as error:
        raise UserError(f"training.tracker: {name} is not installed; pip install {name}") from error
    if name == "mlflow":
        library.start_run(run_name=config.name)
        return lambda kind, step, values: library.log_metrics({f"{kind}/{key}": v for key, v in values.items()}, step)
    library.init(project="anomalygpt", name=config.name, config=config.model_dump(mode="json"))
    return lambda kind, step, values: library.log({f"{kind}/{key}": v for key, v in values.items()}, step=step)
