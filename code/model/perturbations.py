"""Perturbations of a single reference photo: small changes of camera pose and light, to estimate its variation."""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Perturbation(NamedTuple):
    """A small change of camera and light."""

    shift: tuple[float, float] = (0.0, 0.0)  # right and down, as fractions of the side
    angle: float = 0.0  # in degrees, anticlockwise
    zoom: float = 1.0  # above 1 enlarges the part
    brightness: float = 0.0  # added to the normalised image

    def matrix(self) -> list[list[float]]:
        """The affine map (2, 3) from the perturbed photo to the original, both in -1..1."""
        cosine, sine = (f(math.radians(self.angle)) / self.zoom for f in (math.cos, math.sin))
        right, down = (-2 * fraction for fraction in self.shift)
        return [[cosine, -sine, cosine * right - sine * down], [sine, cosine, sine * right + cosine * down]]


HALF_PATCH = 1 / 32  # on a 16 x 16 grid
# Each zooms in far enough to stay inside the photo: padding would differ more than any normal part does.
PERTURBATIONS = (
    Perturbation(shift=(HALF_PATCH, HALF_PATCH), zoom=1.07, brightness=0.15),
    Perturbation(shift=(-HALF_PATCH, -HALF_PATCH), zoom=1.07, brightness=-0.15),
    Perturbation(angle=5.0, zoom=1.09),
    Perturbation(angle=-5.0, zoom=1.09),
    Perturbation(zoom=1.04),
    Perturbation(shift=(HALF_PATCH, 0.0), angle=3.0, zoom=1.13),
)


def perturbed(image: Tensor, perturbations: tuple[Perturbation, ...] = PERTURBATIONS) -> Tensor:
    """A normalised square photo (3, S, S) -> (R, 3, S, S), one per perturbation; reflected beyond its border."""
    matrices = image.new_tensor([each.matrix() for each in perturbations])
    images = image.expand(len(perturbations), -1, -1, -1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved + image.new_tensor([each.brightness for each in perturbations])[:, None, None, None]
