"""A run's numbers in other libraries: their calls, on stand-ins, as none of them is installed here."""

import sys
from types import ModuleType

import pytest

from anomalygpt.config.load import load_config
from anomalygpt.errors import UserError
from anomalygpt.training.trackers import start_tracker


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_library_gets_named_numbers_and_steps(monkeypatch, name):
    calls, library = [], ModuleType(name)
    for function in ("init", "log", "start_run", "log_metrics"):
        setattr(library, function, lambda *values, _name=function, **named: calls.append((_name, values, named)))
    monkeypatch.setitem(sys.modules, name, library)
    start_tracker(load_config("compact", [f"training.tracker={name}"]))("train", 3, {"loss": 0.5})
    (begun, _, about), (logged, (values, *step), named) = calls
    assert (begun, logged) == (("start_run", "log_metrics") if name == "mlflow" else ("init", "log"))
    assert "compact" in (about.get("name"), about.get("run_name"))
    assert values == {"train/loss": 0.5} and [*step, *named.values()] == [3]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.tracker: wandb is not installed; pip install wandb"):
        start_tracker(load_config("compact", ["training.tracker=wandb"]))
    start_tracker(load_config("compact"))("train", 1, {"loss": 0.5})
