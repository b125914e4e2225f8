"""Test-time augmentation of a single reference: the photo as if it had been taken again, slightly differently."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Perturbation:
    """A small change of camera and light.

    Attributes:
        shift: right and down, as shares of the side.
        angle: in degrees, anticlockwise.
        zoom: above 1 enlarges the part.
        brightness: added to the normalised image.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    zoom: float = 1.0
    brightness: float = 0.0

    def matrix(self) -> list[list[float]]:
        """The affine map (2, 3) from the perturbed photo to the original, both in -1..1."""
        cosine, sine = (f(math.radians(self.angle)) / self.zoom for f in (math.cos, math.sin))
        right, down = (-2 * share for share in self.shift)
        return [[cosine, -sine, cosine * right - sine * down], [sine, cosine, sine * right + cosine * down]]


HALF_PATCH = 1 / 32  # on a 16 x 16 grid
# Each zooms in as far as it takes to stay inside the photo: padding would differ more than any good part does.
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
    matrices = torch.tensor([each.matrix() for each in perturbations], dtype=image.dtype, device=image.device)
    images = image.expand(len(perturbations), -1, -1, -1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    brightness = torch.tensor([each.brightness for each in perturbations], dtype=image.dtype, device=image.device)
    return moved + brightness[:, None, None, None]
