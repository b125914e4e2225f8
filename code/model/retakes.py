"""A good photo as it would look if it had been taken again: how far good photos differ, where there is only one."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Retake:
    """How the camera or the light was moved.

    Attributes:
        shift: right and down, as shares of the side.
        angle: in degrees, anticlockwise.
        zoom: above 1 shows the part larger.
        light: added to the normalised image.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    zoom: float = 1.0
    light: float = 0.0


HALF_PATCH = 1 / 32  # on a 16 x 16 grid
# Each zooms in as far as it takes to stay inside the photo: an invented border is stranger than any good part.
RETAKES = (
    Retake(shift=(HALF_PATCH, HALF_PATCH), zoom=1.07, light=0.15),
    Retake(shift=(-HALF_PATCH, -HALF_PATCH), zoom=1.07, light=-0.15),
    Retake(angle=5.0, zoom=1.09),
    Retake(angle=-5.0, zoom=1.09),
    Retake(zoom=1.04),
    Retake(shift=(HALF_PATCH, 0.0), angle=3.0, zoom=1.13),
)


def retaken(image: Tensor, retakes: tuple[Retake, ...] = RETAKES) -> Tensor:
    """A normalised square photo (3, S, S) -> (R, 3, S, S); the photo is mirrored where nothing was seen."""
    matrices = torch.tensor([_matrix(retake) for retake in retakes], dtype=image.dtype, device=image.device)
    images = image.expand(len(retakes), -1, -1, -1)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    light = torch.tensor([retake.light for retake in retakes], dtype=image.dtype, device=image.device)
    return moved + light[:, None, None, None]


def _matrix(retake: Retake) -> list[list[float]]:
    """From places on the retake to places on the photo, both from -1 to 1."""
    cosine, sine = (f(math.radians(retake.angle)) / retake.zoom for f in (math.cos, math.sin))
    right, down = (-2 * share for share in retake.shift)
    return [[cosine, -sine, cosine * right - sine * down], [sine, cosine, sine * right + cosine * down]]
