"""A run's numbers in other libraries: their calls, on stand-ins, as none of them is installed here."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from anomalygpt.config.load import load_config
from anomalygpt.errors import UserError
from anomalygpt.training.trackers import Tracker


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_library_gets_named_numbers_and_steps(monkeypatch, name):
    calls, library = [], ModuleType(name)
    for function in ("init", "log", "start_run", "log_metrics", "log_artifact", "Image"):
        setattr(library, function, lambda *values, _name=function, **named: calls.append((_name, values, named)))
    monkeypatch.setitem(sys.modules, name, library)
    tracker = Tracker(load_config("compact", [f"training.tracker={name}"]))
    tracker.write("train", 3, {"loss": 0.5})
    (begun, _, about), (logged, (values, *step), named) = calls
    assert (begun, logged) == (("start_run", "log_metrics") if name == "mlflow" else ("init", "log"))
    assert "compact" in (about.get("name"), about.get("run_name"))
    assert values == {"train/loss": 0.5} and [*step, *named.values()] == [3]
    del calls[:]
    tracker.write_picture(4, Path("samples/step4.png"))
    assert [each[0] for each in calls] == (["log_artifact"] if name == "mlflow" else ["Image", "log"])
    assert calls[0][1] == ("samples/step4.png",)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.tracker: wandb is not installed; pip install wandb"):
        Tracker(load_config("compact", ["training.tracker=wandb"]))
    Tracker(load_config("compact")).write("train", 1, {"loss": 0.5})
