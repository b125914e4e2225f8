"""Positions on the 3 x 3 grid."""

import numpy as np

from anomalygpt.datasets.regions import marks_position, position_name, positions_of

GRID = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]


def test_the_nine_cells_have_the_papers_names():
    boxes = [
        (14 + 30 * column, 4 + 10 * row, 16 + 30 * column, 6 + 10 * row) for row in range(3) for column in range(3)
    ]
    assert [position_name(box, (90, 30)) for box in boxes] == GRID


def test_a_box_lies_where_its_centre_lies():
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


def test_a_mask_marks_the_cells_that_its_pixels_lie_in():
    target = np.zeros((30, 60), dtype=bool)
    target[9:12, 30] = True  # from the last row of pixels of the upper cells into the middle ones
    assert [position for position in GRID if marks_position(target, position)] == ["top", "center"]
    single = np.zeros((10, 10), dtype=bool)
    single[3, 3] = True  # its centre at 3.5 of 10 lies in the second of three cells
    assert [position for position in GRID if marks_position(single, position)] == ["center"]
