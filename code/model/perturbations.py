"""Perturbations of a single reference photo: small changes of camera pose and light, to estimate its variation."""

import math
from collections.abc import Sequence

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
