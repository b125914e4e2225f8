"""A run's metrics: complete lines, also after a kill."""

import json

from anomalygpt.config.load import load_config
from anomalygpt.training.metrics_log import FILE, MetricsLog, read_metrics

COMPACT = load_config("compact")


def test_lines_are_written_at_once_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path, COMPACT)
    log.write("train", 1, total=0.12345678)
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1, "total": 0.123457}]
    log.board.close()
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_resumed_run_removes_only_lines_from_after_its_checkpoint(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step, "total": 1.0}) for step in (1, 2, 3)]
    (tmp_path / FILE).write_text("\n".join(lines) + '\n{"kind": "train", "st')  # killed in the middle of a line
    MetricsLog(tmp_path, COMPACT, start=2).write("train", 3, total=2.0)
    assert [(line["step"], line["total"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]
