"""The run's folder: settings that may not be mixed, and files that are damaged."""

import pytest

from anomalygpt.errors import UserError
from anomalygpt.evaluation.measured import Measured
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.evaluation.state import State


def test_another_setting_is_refused_by_name(tmp_path):
    State(tmp_path, Measured).require({"seed": 1, "precision": "fp32"})
    State(tmp_path, Measured).require({"seed": 1, "precision": "fp32"})
    with pytest.raises(UserError, match='another precision \\("fp32", now "fp16"\\); name another --out, or delete'):
        State(tmp_path, Measured).require({"seed": 1, "precision": "fp16"})
    with pytest.raises(UserError, match="another new setting"):
        State(tmp_path, Measured).require({"seed": 1, "precision": "fp32", "new setting": True})


def test_a_damaged_file_is_told_and_nothing_is_lost_by_deleting_it(tmp_path):
    state, cell = State(tmp_path, Measured), Cell(0, 0, "bottle")
    state.write_part(cell, 0, Measured())
    (path,) = state.parts(cell).values()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"bottle.part0: can't be read .* delete it"):
        state.finish(cell)
    path.unlink()
    assert state.parts(cell) == {} and state.finished(cell) is None


@pytest.mark.parametrize("name", ["a/b", "..", "x.part1", "[*]", "螺丝"])
def test_a_class_may_have_any_name(tmp_path, name):
    state = State(tmp_path, Measured)
    for other in (name, "b", "x"):
        state.write_part(Cell(0, 0, other), 1, Measured(seconds=len(other)))
    assert state.finish(Cell(0, 0, name)).seconds == len(name)
    assert state.finished(Cell(0, 0, name)) is not None
    assert list(state.parts(Cell(0, 0, "x"))) == [1]
    assert all(path.is_relative_to(tmp_path / "state") for path in tmp_path.rglob("*") if path.is_file())
