"""The orientation of a part in its photo, from the second moments of the patches that differ from the border."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Orientation(NamedTuple):
    """The orientation of a part."""

    aspect: float  # length divided by width, at least 1
    tilt: float  # degrees between the long axis and the nearer side of the photo, 0..45


def orientation_of(patches: Tensor) -> Orientation:
    """The orientation of the part in a photo, from one tap's unit-length patches (P * P, D_v) in reading order."""
    grid = round(len(patches) ** 0.5)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(grid)] * 2, indexing="ij"))
    border = (torch.minimum(rows, columns) == 0) | (torch.maximum(rows, columns) == grid - 1)
    distances = 1 - patches @ F.normalize(patches[border.to(patches.device)].mean(dim=0), dim=0)
    # Otsu's threshold: it splits the values into two groups of least variance.
    ordered, count = distances.sort().values.double(), torch.arange(1, len(distances), device=distances.device)
    excess = ordered.cumsum(dim=0)[:-1] - count * ordered.mean()
    part = (distances > ordered[(excess**2 / (count * (len(distances) - count))).argmax()]).float().cpu()
    points = torch.stack([columns, rows]).float()
    centred = points - (points * part).sum(dim=1, keepdim=True) / part.sum()
    covariance = (part * centred) @ centred.T / part.sum() + torch.eye(2) / 12  # the variance within a patch
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    angle = math.degrees(math.atan2(float(axes[1, 1]), float(axes[0, 1]))) % 90
    return Orientation(float((variances[1] / variances[0]).sqrt()), min(angle, 90 - angle))
