"""Positions on the 3 x 3 grid."""

import numpy as np

from anomalygpt.datasets.regions import position_name, positions_of

GRID = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]


def test_the_nine_cells_have_the_papers_names():
    corners = [(14 + 30 * column, 4 + 10 * row) for row in range(3) for column in range(3)]
    assert [position_name((x, y, x + 2, y + 2), (90, 30)) for x, y in corners] == GRID
    assert position_name((0, 0, 90, 30), (90, 90)) == "top"
    assert position_name((80, 80, 90, 90), (90, 90)) == position_name((90, 90, 90, 90), (90, 90)) == "bottom right"


def test_positions_of_a_mask_by_hand():
    target = np.zeros((90, 90), bool)
    assert positions_of(target) == ()
    target[2:12, 2:12] = True
    assert positions_of(target) == ("top left",)
    target[40:60, 40:60] = True
    assert positions_of(target) == ("center", "top left")
    target[40:60, 61:63] = True  # a gap of one pixel divides nothing
    assert positions_of(target) == ("center", "top left")
