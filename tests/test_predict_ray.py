"""A folder on a local Ray cluster: each photo once, with the verdicts of a plain run, after a kill and a restart."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from anomalygpt.errors import UserError
from anomalygpt.inference.ray_engine import inspect_on_ray
from tests.shared_data import ROOT


def test_missing_ray_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray: .*pip install 'ray\[data\]'"):
        inspect_on_ray([tmp_path / "1.png"], tmp_path, lambda: None)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(1800)
def test_killed_worker_and_restart_leave_each_photo_once(photo, tmp_path: Path, compact_predictor) -> None:
    pytest.importorskip("ray", reason="needs pip install 'ray[data]'")
    import psutil
    from pyarrow.parquet import read_table

    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(24):
        photo(scratch=(0.4, 0.6) if number % 3 == 0 else None, seed=number).save(photos / f"{number:02}.png")
    (photos / "99.png").write_text("no photo")
    for seed in (98, 99):
        photo(seed=seed).save(tmp_path / f"good_{seed}.png")
    given = [sys.executable, "predict.py", str(photos), "--reference", str(tmp_path / "good_98.png")]
    given += [str(tmp_path / "good_99.png"), "--no-chat", "--config", "compact", "--out"]
    subprocess.run([*given, str(tmp_path / "plain")], cwd=ROOT / "code", check=False, capture_output=True)
    lines = (tmp_path / "plain" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {each["photo"]: each for each in map(json.loads, lines)}
    assert len(expected) == 25

    def files() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}

    def check() -> None:
        rows = [row for file in out.glob("*.parquet") for row in read_table(file).to_pylist()]
        assert sorted(row["photo"] for row in rows) == sorted(expected), "each once"
        for row in rows:
            plain = expected[row["photo"]]
            assert row["verdict"] == ("error" if "error" in plain else plain["status"])
            assert row["probability"] == pytest.approx(plain.get("probability"), abs=1e-5)

    on_ray = [*given, str(out), "--engine", "ray"]
    run = subprocess.Popen(on_ray, cwd=ROOT / "code")
    while run.poll() is None and not files():
        time.sleep(0.1)
    for process in psutil.Process(run.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # others end meanwhile
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                break
    else:
        pytest.fail("no worker to kill")
    before = len(files())
    assert run.wait() == 1, "one photo can't be read"
    assert before < len(files())
    check()
    next(out.glob("*.parquet")).unlink()
    kept = files()
    assert subprocess.run(on_ray, cwd=ROOT / "code", check=False).returncode == 1
    check()
    assert kept.items() <= files().items(), "nothing else is done again"
