"""Connected regions of a binary mask, their bounding boxes, and their positions on a 3 x 3 grid."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

GRID = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))
JOINED_GAP = 0.02  # regions closer than this fraction of the longer side count as one defect


class Box(NamedTuple):
    """A half-open box in pixels: columns left..right, rows top..bottom."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as OpenCV takes it."""
        return self.right - self.left, self.bottom - self.top

    def pixels(self, margin: int = 0) -> tuple[slice, slice]:
        """The index of the box's pixels in an array (H, W, …), with a margin as far as the array reaches."""
        first_row, first_column = max(0, self.top - margin), max(0, self.left - margin)
        return slice(first_row, self.bottom + margin), slice(first_column, self.right + margin)


def label_regions(mask: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """The 8-connected regions of a mask (H, W): int32 labels from 1 on, (H, W), 0 outside; and their number."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return labels.astype(np.int32, copy=False), count


def bounding_box(flags: NDArray[np.bool_]) -> Box:
    """The smallest box around the True pixels of (H, W) flags, of which there must be at least one."""
    rows, columns = np.flatnonzero(flags.any(axis=1)), np.flatnonzero(flags.any(axis=0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def position_name(box: Sequence[float], size: tuple[int, int]) -> str:
    """The cell of ``GRID`` in which the centre of a box (left, top, right, bottom) of an image (width, height) lies."""
    left, top, right, bottom = box
    centre = ((left + right) / 2, (top + bottom) / 2)
    column, row = (min(2, max(0, int(3 * at / side))) for at, side in zip(centre, size, strict=True))
    return GRID[row][column]


def positions_of(target: NDArray[np.bool_]) -> tuple[str, ...]:
    """The position of each region's bounding box, largest region first; regions closer than 2 % of the side are one."""
    height, width = target.shape
    reach = 1 + 2 * round(JOINED_GAP * max(height, width) / 2)
    labels, count = label_regions(cv2.dilate(target.astype(np.uint8), np.ones((reach, reach), np.uint8)))
    regions = [target & (labels == label) for label in range(1, count + 1)]
    regions.sort(key=np.count_nonzero, reverse=True)
    return tuple(position_name(bounding_box(region), (width, height)) for region in regions)
