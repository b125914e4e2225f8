"""A run's metrics: complete lines, also after a kill."""

import json
import sys
from types import ModuleType

import pytest
from PIL import Image

from anomalygpt.config.load import load_config
from anomalygpt.errors import UserError
from anomalygpt.files import read_lines
from anomalygpt.training.metrics_log import FILE, MetricsLog

COMPACT = load_config("compact")


def test_lines_are_written_at_once_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, COMPACT)
    log.write("train", 1, total=0.12345678)
    assert read_lines(tmp_path / FILE) == [{"kind": "train", "step": 1, "total": 0.123457}]
    log.close()
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_resumed_run_removes_only_lines_from_after_its_checkpoint(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step, "total": 1.0}) for step in (1, 2, 3)]
    (tmp_path / FILE).write_text("\n".join(lines) + '\n{"kind": "train", "st')  # killed in the middle of a line
    MetricsLog(tmp_path, COMPACT, start=2).write("train", 3, total=2.0)
    assert [(line["step"], line["total"]) for line in read_lines(tmp_path / FILE)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_each_tracker_gets_named_numbers_and_steps(monkeypatch, tmp_path, name):
    """On stand-ins, which show what is called."""
    calls, library = [], ModuleType(name)
    for function in ("init", "log", "start_run", "log_metrics", "log_artifact", "Image", "finish", "end_run"):
        setattr(library, function, lambda *values, _name=function, **named: calls.append((_name, values, named)))
    monkeypatch.setitem(sys.modules, name, library)
    log = MetricsLog(tmp_path, load_config("compact", [f"training.tracker={name}"]))
    log.write("train", 3, loss=0.5)
    (begun, _, about), (logged, (values, *step), named) = calls
    assert (begun, logged) == (("start_run", "log_metrics") if name == "mlflow" else ("init", "log"))
    assert "compact" in (about.get("name"), about.get("run_name"))
    assert values == {"train/loss": 0.5} and [*step, *named.values()] == [3]
    del calls[:]
    Image.new("RGB", (4, 4)).save(tmp_path / "step4.png")
    log.write_picture(4, tmp_path / "step4.png")
    assert [each[0] for each in calls] == (["log_artifact"] if name == "mlflow" else ["Image", "log"])
    assert calls[0][1] == (str(tmp_path / "step4.png"),)
    log.close()
    assert calls[-1][0] == ("end_run" if name == "mlflow" else "finish")


def test_a_missing_tracker_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"training\.tracker: wandb is not installed; pip install wandb"):
        MetricsLog(tmp_path, load_config("compact", ["training.tracker=wandb"]))


def test_a_tracker_that_cannot_start_ends_in_one_line(monkeypatch, tmp_path):
    def refuse(**_):
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")

    library = ModuleType("wandb")
    monkeypatch.setattr(library, "init", refuse, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", library)
    with pytest.raises(UserError, match=r"^training\.tracker: wandb can't start \(No API key .* to log in\)$"):
        MetricsLog(tmp_path, load_config("compact", ["training.tracker=wandb"]))


@pytest.mark.parametrize(("name", "written"), [("wandb", "*.wandb"), ("mlflow", "mlflow.db"), ("trackio", "*.db")])
def test_the_real_tracker_takes_numbers_and_a_picture(monkeypatch, tmp_path, name, written):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(name, reason=f"needs {name}")  # after these: trackio reads them when it is imported
    log = MetricsLog(tmp_path, load_config("compact", [f"training.tracker={name}"]))
    for step in (1, 2):
        log.write("train", step, loss=1 / step)
    Image.new("RGB", (4, 4)).save(tmp_path / "step2.png")
    log.write_picture(2, tmp_path / "step2.png")
    log.close()
    assert any(tmp_path.rglob(written))
