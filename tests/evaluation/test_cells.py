"""The run's folder: cells that are there are not measured again, settings and photos are not mixed."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest
import torch

from anomalygpt import distributed
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.evaluation import cells
from anomalygpt.evaluation.cells import Cell, Plan, measure_cells

CELLS = [Cell(shots, 0, "bottle") for shots in (0, 1, 2, 3, 4)]
NAMES = [f"bottle/test/{kind}/00{number}.png" for kind in ("good", "hole") for number in (0, 1)]


def noisy(dark):
    """A map that is neither perfect nor useless."""
    return (dark + 0.7 * (997 * dark).frac()) / 2


@pytest.fixture
def fill(evaluator, fake_predictor):
    """Measures the tree's cells into a folder; returns the results, all but their times, and what was measured."""

    def run(folder, cells=CELLS, settings=None, names=NAMES):
        measured = []

        def build(process):
            measure = evaluator(fake_predictor(noisy), plan=Plan((0, 1, 2, 3, 4))).measure
            return lambda cell, on_photo: (measured.append(cell), measure(cell, on_photo))[1]

        _, results = measure_cells("cpu", folder, settings or {}, dict.fromkeys(cells, names), build)
        return [result | {"seconds": None} for result in results], measured

    return run


def test_a_result_is_read_as_it_was_measured(evaluator, fake_predictor, tmp_path):
    measured = evaluator(fake_predictor(noisy)).measure(CELLS[0])
    _, [found] = measure_cells("cpu", tmp_path, {}, {CELLS[0]: NAMES}, lambda _: lambda cell, on_photo: measured)
    assert found.pop("seconds") > 0
    assert found == json.loads(json.dumps(measured)) | {"shots": 0, "round": 0, "class": "bottle", "names": NAMES}


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
    monkeypatch.setattr(distributed, "on_main", lambda is_main, act: act() if is_main else None)
    ranks = iter(range(count))

    @contextmanager
    def joined(device, out):
        rank = next(ranks)
        yield Process(rank, count, torch.device("cpu")), out

    monkeypatch.setattr(cells, "_joined", joined)
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda _: fill(tmp_path / "shared"), range(count)))
    assert [results for results, _ in found if results] == [alone], "the main process reads them"
    assert sorted(len(measured) for _, measured in found) == sorted(len(CELLS[rank::count]) for rank in range(count))


def test_another_setting_is_refused_by_name(fill, tmp_path):
    fill(tmp_path, CELLS[:1], {"seed": 1, "precision": "fp32"})
    with pytest.raises(UserError, match='another precision \\("fp32", now "fp16"\\); name another --out, or delete'):
        fill(tmp_path, CELLS[:1], {"seed": 1, "precision": "fp16"})
    with pytest.raises(UserError, match="another new setting"):
        fill(tmp_path, CELLS[:1], {"seed": 1, "precision": "fp32", "new setting": True})


def test_a_cell_with_other_photos_is_measured_anew(fill, tmp_path):
    fill(tmp_path, CELLS[:2])
    [result], measured = fill(tmp_path, CELLS[:1], names=[*NAMES, "bottle/new.png"])
    assert measured == CELLS[:1] and result["names"] == [*NAMES, "bottle/new.png"]


def test_a_class_may_have_any_name(evaluator, fake_predictor, tmp_path):
    measured = evaluator(fake_predictor()).measure(CELLS[0])
    cells = {Cell(0, 0, name): NAMES for name in ("a/b", "..", "x.part1", "[*]", "螺丝", "b", "x")}
    _, results = measure_cells("cpu", tmp_path / "run", {}, cells, lambda _: lambda cell, on_photo: measured)
    assert [result["class"] for result in results] == [cell.class_name for cell in cells]
    files = list((tmp_path / "run" / "state" / "0_shot_round_0").rglob("*"))
    assert len(files) == len(cells) and all(file.is_file() for file in files)
