"""A part in its photo: how it is oriented, and small changes of camera pose and light, to estimate variation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HALF_PATCH = 1 / 32  # on a 16 x 16 grid
# Shifts to the right and down in fractions of the side, degrees anticlockwise, zoom, and what is added to the pixels.
# Each zooms in far enough to stay inside the photo: padding would differ more than any normal part does.
PERTURBATIONS = (
    (HALF_PATCH, HALF_PATCH, 0.0, 1.07, 0.15),
    (-HALF_PATCH, -HALF_PATCH, 0.0, 1.07, -0.15),
    (0.0, 0.0, 5.0, 1.09, 0.0),
    (0.0, 0.0, -5.0, 1.09, 0.0),
    (0.0, 0.0, 0.0, 1.04, 0.0),
    (HALF_PATCH, 0.0, 3.0, 1.13, 0.0),
)


class Orientation(NamedTuple):
    """The orientation of a part."""

    aspect: float  # length divided by width, at least 1
    tilt: float  # degrees between the long axis and the nearer side of the photo, 0..45


def orientation_of(patches: Tensor) -> Orientation:
    """The part's orientation, from one tap's unit patches (P * P, D_v) in reading order, parted by Otsu's threshold."""
    from skimage.measure import regionprops  # here, because it takes its time

    square = patches.unflatten(0, (math.isqrt(len(patches)), -1))
    border = torch.cat([square[0], square[-1], square[1:-1, 0], square[1:-1, -1]])
    distances = (1 - square @ F.normalize(border.mean(dim=0), dim=0)).double().cpu()
    ordered, count = distances.flatten().sort().values, torch.arange(1, distances.numel())
    excess = ordered.cumsum(dim=0)[:-1] - count * ordered.mean()
    threshold = float(ordered[(excess**2 / (count * (len(ordered) - count))).argmax()])
    inside = distances > min(threshold, float(ordered[-1]) - 1e-9)  # of a flat photo, everything
    [part] = regionprops(inside.int().numpy())
    angle = math.degrees(part.orientation) % 90
    return Orientation(part.axis_major_length / max(part.axis_minor_length, 1.0), min(angle, 90 - angle))


def perturbed(image: Tensor, perturbations: Sequence[Sequence[float]] = PERTURBATIONS) -> Tensor:
    """A normalised square photo (3, S, S) -> (R, 3, S, S), one per perturbation."""
    side, pixels, moved = image.shape[-1], image.permute(1, 2, 0).numpy(), []
    for right, down, angle, zoom, light in perturbations:
        matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, angle, zoom)
        matrix[:, 2] += np.multiply(side, (right, down))
        moved.append(cv2.warpAffine(pixels, matrix, (side, side)) + light)
    return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2)
