"""Further views of the references: turned ones where they help (``augmentation: auto``), and another camera's."""

import io
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.photo_geometry import Orientation

Augmentation = Literal["none", "rotations", "flips"]
Camera = Literal["own", "noisy", "compressed"]

DECIDED_BY = 8  # references that ``auto`` measures; more of them do not change the decision
# Any four views bring references a little nearer to each other (textures and aligned parts: to 0.87-0.99 of their
# distance); parts that lie at any angle (screw, hazelnut) come to 0.52-0.86.
CLEAR_GAIN = 0.86
TOP_FRACTION = 0.05  # of the patches, those of the largest distance: a rotation shows there, not in the mean
ELONGATED = 1.6  # the aspect from which on the tilt of a part can be measured
TILTED = 7.0  # degrees; an aligned part (toothbrush, a transistor's legs) keeps within 3
# Copies as another camera would have taken them, of so many views: noise and compression change the patches of all
# photos in the same way, so that some show enough of it.
CAMERA_COPIES = 8
NOISE, JPEG_QUALITY = 5.0, 40  # standard deviation in levels of 255

View = tuple[int, bool, Camera]  # quarter turns, anticlockwise, of a photo or of its mirror image
UPRIGHT: View = (0, False, "own")
VIEWS: dict[Augmentation, tuple[View, ...]] = {
    "none": (UPRIGHT,),
    "rotations": tuple((turns, False, "own") for turns in range(4)),
    "flips": (UPRIGHT, (0, True, "own"), (2, True, "own"), (2, False, "own")),
}
ALL_VIEWS = tuple(dict.fromkeys(view for views in VIEWS.values() for view in views))


def seen(image: Tensor, view: View) -> Tensor:
    """The view of a square (…, S, S)."""
    turns, mirrored, _ = view
    return torch.rot90(torch.flip(image, (-1,)) if mirrored else image, turns, dims=(-2, -1))


def by_camera(pixels: NDArray[np.uint8], camera: Camera) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as they are, with noise, or as a JPEG file holds them."""
    if camera == "noisy":
        noise = np.random.default_rng(0).normal(0, NOISE, pixels.shape)
        return np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if camera == "compressed":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
        return np.asarray(Image.open(file))
    return pixels


def view_positions(views: Sequence[View], grid: int) -> Tensor:
    """Where the patches of each view lie on the upright photo: (V, P * P) int64, in reading order."""
    upright = torch.arange(grid * grid).view(grid, grid)
    return torch.stack([seen(upright, view).flatten() for view in views])


def choose_augmentation(gains: Mapping[Augmentation, float], orientations: Sequence[Orientation]) -> Augmentation:
    """Which views to add to the memory bank, by :func:`view_gains` and how the part lies in each reference.

    A part that can lie at any angle needs its rotations. The references show this: rotations reduce the distance
    between them, or an elongated part is tilted in most of them.
    """
    elongated = [each for each in orientations if each.aspect >= ELONGATED]
    if 2 * len(elongated) > len(orientations) and median(each.tilt for each in elongated) >= TILTED:
        return "rotations"
    best = min(gains, key=lambda kind: gains[kind])
    return best if gains[best] < CLEAR_GAIN else "none"


def view_gains(references: Sequence[ImageFeatures]) -> dict[Augmentation, float]:
    """Of references' ``ALL_VIEWS``: the distance to each other with further views over that without, 0..1."""
    distances = {}
    for kind, views in VIEWS.items():
        bank = MemoryBank([photo[[ALL_VIEWS.index(view) for view in views]] for photo in references])
        queries = [bank[bank.photos != number].similarity(photo[:1]) for number, photo in enumerate(references)]
        distance = 1 - torch.cat(queries).flatten(1)
        distances[kind] = float(distance.topk(max(1, round(TOP_FRACTION * distance.shape[1]))).values.mean())
    least = torch.finfo(torch.float32).eps
    return {kind: distances[kind] / max(distances["none"], least) for kind in distances if kind != "none"}
