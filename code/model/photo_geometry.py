"""A part in its photo: how it is oriented, and small changes of camera pose and light, to estimate variation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

ELONGATED, FILLED = 2.3, 0.5  # the least length in widths, and share of its box, of an elongated part
MARGIN = 0.12  # around a part, of its length, on both sides together
BOX_SIDE, SMALLEST = 256, 16.0  # of the photo in which a part is looked for; and of what is cut out, in pixels
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


class PartBox(NamedTuple):
    """The turned rectangle around a part, in pixels of its photo."""

    centre: NDArray[np.float64]  # (2,), x and y
    axes: NDArray[np.float64]  # (2, 2), unit vectors along and across the part
    size: NDArray[np.float64]  # (2,), length and width
    filled: float  # share of the rectangle, 0..1

    @property
    def aspect(self) -> float:
        return float(self.size[0] / self.size[1])

    @property
    def is_elongated(self) -> bool:
        """Whether it is a single, long part rather than a texture, or parts side by side."""
        return self.aspect >= ELONGATED and self.filled >= FILLED

    @property
    def tilt(self) -> float:
        """Degrees between the long axis and the nearer side of the photo, 0..45."""
        return math.degrees(math.atan2(*sorted(np.abs(self.axes[0]))))

    def straightened(self, photo: Image.Image) -> tuple[Image.Image, Tensor]:
        """The part of an RGB photo with a margin, turned along the x axis, and where it is.

        That is the matrix (2, 3) from coordinates of the photo to those of the part, both -1..1, float32.
        """
        sides = np.ceil(np.maximum(self.size + MARGIN * self.size[0], SMALLEST))
        offset = (sides - 1) / 2 - self.axes @ (self.centre - 0.5)  # of pixels, whose centres have whole numbers
        matrix, shape = np.column_stack([self.axes, offset]), sides.astype(int).tolist()
        part = cv2.warpAffine(np.asarray(photo), matrix, shape, None, cv2.INTER_CUBIC, cv2.BORDER_REPLICATE)
        middle = self.axes @ (np.array(photo.size) / 2 - self.centre)
        placed = np.column_stack([self.axes * photo.size, 2 * middle]) / sides[:, None]
        return Image.fromarray(part), torch.from_numpy(placed).float()


def part_box(photo: Image.Image) -> PartBox:
    """The rectangle around the largest thing in an RGB photo that differs from its border, parted by Otsu's threshold.

    Of a photo without such a thing, all of it.
    """
    scale = min(1.0, BOX_SIDE / max(photo.size))
    small = np.asarray(photo.resize([max(1, round(scale * side)) for side in photo.size], reducing_gap=2.0))
    smooth = cv2.GaussianBlur(small.astype(np.float32), (0, 0), 1.5)
    border = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    distance = np.abs(smooth - np.median(border, axis=0)).max(axis=2).astype(np.uint8)
    mask = cv2.threshold(distance, 0, 255, cv2.THRESH_OTSU)[1]
    _, labels, about, _ = cv2.connectedComponentsWithStats(mask)
    largest = 1 + int(about[1:, cv2.CC_STAT_AREA].argmax()) if len(about) > 1 else 0
    points = np.argwhere(labels == largest)[:, ::-1] + 0.5
    centred = points - points.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, 1]
    axis = axis * np.copysign(1, ((centred @ axis) ** 3).sum())  # its thin end to the right, so that all lie alike
    axes = np.stack([axis, (-axis[1], axis[0])])
    low, high = (centred @ axes.T).min(axis=0), (centred @ axes.T).max(axis=0)
    centre = points.mean(axis=0) + (low + high) / 2 @ axes
    size = high - low + 1
    return PartBox(centre / scale, axes, size / scale, float(len(points) / size.prod()))


def perturbed(image: Tensor, perturbations: Sequence[Sequence[float]] = PERTURBATIONS) -> Tensor:
    """A normalised square photo (3, S, S) -> (R, 3, S, S), one per perturbation."""
    side, pixels, moved = image.shape[-1], image.permute(1, 2, 0).numpy(), []
    for right, down, angle, zoom, light in perturbations:
        matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, angle, zoom)
        matrix[:, 2] += np.multiply(side, (right, down))
        moved.append(cv2.warpAffine(pixels, matrix, (side, side)) + light)
    return torch.from_numpy(np.stack(moved)).permute(0, 3, 1, 2)
