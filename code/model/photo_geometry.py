"""A part in its photo: how it is oriented, and small changes of camera pose and light, to estimate variation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

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


def affine_map(right: float, down: float, angle: float, zoom: float) -> list[list[float]]:
    """The affine map (2, 3) from a perturbed photo to the original, both in -1..1."""
    cosine, sine = (f(math.radians(angle)) / zoom for f in (math.cos, math.sin))
    right, down = -2 * right, -2 * down
    return [[cosine, -sine, cosine * right - sine * down], [sine, cosine, sine * right + cosine * down]]


def perturbed(image: Tensor, perturbations: Sequence[Sequence[float]] = PERTURBATIONS) -> Tensor:
    """A normalised square photo (3, S, S) -> (R, 3, S, S), one per perturbation; reflected beyond its border."""
    matrices = image.new_tensor([affine_map(*each[:4]) for each in perturbations])
    images = image.expand(len(perturbations), -1, -1, -1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved + image.new_tensor([each[4] for each in perturbations])[:, None, None, None]
