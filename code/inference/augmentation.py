"""Further views of the references: quarter turns where they help (``augmentation: auto``), and another camera's."""

import io
from collections.abc import Sequence
from statistics import median
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.inference.anomaly_map import top_mean
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.photo_geometry import PartBox

Augmentation = Literal["none", "rotations"]
Camera = Literal["own", "noisy", "compressed"]

DECIDED_BY = 8  # references that ``auto`` measures; more of them do not change the decision
# Any four views bring references a little nearer to each other (textures and aligned parts: to 0.87-0.99 of their
# distance); parts that lie at any angle (screw, hazelnut) come to 0.52-0.86.
CLEAR_GAIN = 0.86
TOP_FRACTION = 0.05  # of the patches, those of the largest distance: a rotation shows there, not in the mean
TILTED = 7.0  # degrees; an aligned part (toothbrush, a transistor's legs) keeps within 3
CAMERA_COPIES = 8  # views with copies by another camera; its noise and compression change all photos in the same way
NOISE, JPEG_QUALITY = 5.0, 40  # standard deviation in levels of 255

View = tuple[int, Camera]  # quarter turns, anticlockwise
UPRIGHT: View = (0, "own")
VIEWS: dict[Augmentation, tuple[View, ...]] = {"none": (UPRIGHT,), "rotations": tuple((n, "own") for n in range(4))}


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


def tilted_aspect(parts: Sequence[PartBox]) -> float:
    """The aspect ratio of the elongated parts that most of some photos show at an angle; else 0."""
    elongated = [each for each in parts if each.is_elongated]
    if 2 * len(elongated) <= len(parts) or median(each.tilt for each in elongated) < TILTED:
        return 0
    return median(each.aspect for each in elongated)


def rotation_gain(references: Sequence[ImageFeatures]) -> float:
    """Of references' four rotations, upright first: the distance to each other with them over that without, 0..1."""
    distances = []
    for views in VIEWS.values():
        bank = MemoryBank([photo[: len(views)] for photo in references])
        queries = [bank[bank.photos != number].similarity(photo[:1]) for number, photo in enumerate(references)]
        distances.append(float(top_mean(1 - torch.cat(queries), TOP_FRACTION).mean()))
    return distances[1] / max(distances[0], torch.finfo(torch.float32).eps)
