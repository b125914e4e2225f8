"""A run's metrics: complete lines, also after a kill and on a full disk."""

import json
import subprocess
import sys

import pytest

from anomalygpt.errors import UserError
from anomalygpt.training.metrics_log import FILE, MetricsLog, read_metrics
from tests.shared_data import ROOT


def test_lines_are_written_at_once_and_to_tensorboard(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("train", 1, total=0.12345678)
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1, "total": 0.123457}]
    log.close()
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_resumed_run_removes_only_lines_from_after_its_checkpoint(tmp_path):
    lines = [json.dumps({"kind": "train", "step": step, "total": 1.0}) for step in (1, 2, 3)]
    (tmp_path / FILE).write_text("\n".join(lines) + '\n{"kind": "train", "st')  # killed in the middle of a line
    MetricsLog(tmp_path, start=2).write("train", 3, total=2.0)
    assert [(line["step"], line["total"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    before = (tmp_path / FILE).stat()
    MetricsLog(tmp_path, start=3)
    after = (tmp_path / FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns), "a full disk takes no copy"


@pytest.mark.parametrize("blocked", ["tensorboard", FILE])
def test_a_folder_that_can_not_be_written_is_one_line(tmp_path, blocked):
    if blocked == FILE:
        (tmp_path / blocked).mkdir()
    else:
        (tmp_path / blocked).write_text("in the way")
    with pytest.raises(UserError, match="can't be written .* make room") as caught:
        MetricsLog(tmp_path, start=0)
    assert "\n" not in str(caught.value)


FULL = """
import logging, resource, signal, sys
from pathlib import Path
from anomalygpt.training.metrics_log import MetricsLog, read_metrics

logging.basicConfig(format="%(message)s")
log = MetricsLog(Path(sys.argv[1]))
log.write("train", 1, total=1.0)
size = (Path(sys.argv[1]) / "metrics.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for step in range(2, 6):
    log.write("train", step, total=1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write("train", 6, total=1.0)
print([line["step"] for line in read_metrics(Path(sys.argv[1]))])
"""


def test_numbers_lost_on_a_full_disk_are_logged_once_and_the_run_goes_on(tmp_path):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'code')!r})\n{FULL}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 6]"  # no half line between them
    assert done.stderr.count("numbers are lost") == 1
