"""Connected regions of a binary mask: one connectivity for what is shown, said and measured."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def label_regions(mask: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Labels the connected regions of a mask; pixels that touch at a corner are connected.

    Args:
        mask: (H, W), nonzero inside a region.

    Returns:
        (H, W) int32 labels from 1 on, 0 outside, and the number of regions.
    """
    labels, count = ndimage.label(mask, EIGHT_NEIGHBOURS)
    return labels.astype(np.int32, copy=False), count
