"""The run's folder: cells that are there are not measured again, settings are not mixed, damaged files are reported."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from anomalygpt import distributed
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.evaluation.cells import CellResult, CellStore
from anomalygpt.evaluation.protocol import Cell, Plan

ALONE = Process(0, 0, 1, torch.device("cpu"))
CELLS = [Cell(shots, 0, "bottle") for shots in (0, 1, 2, 3, 4)]


def noisy(dark):
    """A map that is neither perfect nor useless."""
    return (dark + 0.7 * (997 * dark).frac()) / 2


@pytest.fixture
def fill(evaluator, fake_predictor):
    """Measures the tree's cells into a folder; returns the results, all but their times, and what was measured."""

    def run(folder, process=ALONE, cells=CELLS):
        store, measured = CellStore(folder), []

        def build():
            measure = evaluator(fake_predictor(noisy), plan=Plan((0, 1, 2, 3, 4))).measure
            return lambda cell, on_photo: (measured.append(cell), measure(cell, on_photo))[1]

        store.fill(cells, process, lambda cell: 4, build)
        results = [store.load(cell, CellResult) for cell in cells]
        return [{**vars(result), "seconds": None} for result in results], measured

    return run


def test_a_result_is_read_as_it_was_measured(evaluator, fake_predictor, tmp_path):
    measured = evaluator(fake_predictor(noisy)).measure(CELLS[0])
    store = CellStore(tmp_path)
    store.fill(CELLS[:1], ALONE, lambda cell: 4, lambda: lambda cell, on_photo: measured)
    assert store.load(CELLS[0], CellResult) == measured


def test_a_run_goes_on_with_the_cells_that_are_left(fill, tmp_path):
    whole, measured = fill(tmp_path / "whole")
    assert measured == CELLS
    fill(tmp_path / "stopped", cells=CELLS[1:3])
    found, measured = fill(tmp_path / "stopped")
    assert found == whole and measured == [CELLS[0], *CELLS[3:]]
    assert fill(tmp_path / "stopped") == (whole, [])


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_cells_and_measure_what_one_does(fill, tmp_path, monkeypatch, count):
    alone, _ = fill(tmp_path / "alone")
    monkeypatch.setattr(distributed, "barrier", Barrier(count, timeout=60).wait)
    processes = [Process(rank, rank, count, torch.device("cpu")) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda process: fill(tmp_path / "shared", process), processes))
    assert all(results == alone for results, _ in found)
    assert [measured for _, measured in found] == [CELLS[rank::count] for rank in range(count)]


def test_another_setting_is_refused_by_name(tmp_path):
    CellStore(tmp_path).require({"seed": 1, "precision": "fp32"})
    CellStore(tmp_path).require({"seed": 1, "precision": "fp32"})
    with pytest.raises(UserError, match='another precision \\("fp32", now "fp16"\\); name another --out, or delete'):
        CellStore(tmp_path).require({"seed": 1, "precision": "fp16"})
    with pytest.raises(UserError, match="another new setting"):
        CellStore(tmp_path).require({"seed": 1, "precision": "fp32", "new setting": True})


def test_a_damaged_file_is_reported_and_measured_again_once_it_is_deleted(fill, tmp_path):
    whole, _ = fill(tmp_path)
    path = tmp_path / "state" / "0_shot_round_0" / "bottle.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"bottle.json: can't be read .* delete it"):
        fill(tmp_path)
    path.unlink()
    assert fill(tmp_path) == (whole, CELLS[:1])


def test_a_class_may_have_any_name(evaluator, fake_predictor, tmp_path):
    measured = evaluator(fake_predictor()).measure(CELLS[0])
    cells = [Cell(0, 0, name) for name in ("a/b", "..", "x.part1", "[*]", "螺丝", "b", "x")]
    store = CellStore(tmp_path / "run")
    store.fill(cells, ALONE, lambda cell: 4, lambda: lambda cell, on_photo: measured)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {tmp_path / "run" / "state" / "0_shot_round_0"}
    assert len(files) == len(cells)
