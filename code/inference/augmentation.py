"""Further views of the references, and which of them help (``augmentation: auto``)."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.orientation import Orientation

Augmentation = Literal["none", "rotations", "flips"]

DECIDED_BY = 8  # references that ``auto`` measures; more of them do not change the decision
# Any four views bring references a little nearer to each other (textures and aligned parts: to 0.87-0.99 of their
# distance); parts that lie at any angle (screw, hazelnut) come to 0.52-0.86.
CLEAR_GAIN = 0.86
TOP_FRACTION = 0.05  # of the patches, those of the largest distance: a rotation shows there, not in the mean
ELONGATED = 1.6  # the aspect from which on the tilt of a part can be measured
TILTED = 7.0  # degrees; an aligned part (toothbrush, a transistor's legs) keeps within 3


class View(NamedTuple):
    """Quarter turns, anticlockwise, of a photo or of its mirror image."""

    turns: int = 0
    mirrored: bool = False

    def of(self, image: Tensor) -> Tensor:
        """The view of a square (…, S, S)."""
        image = torch.flip(image, (-1,)) if self.mirrored else image
        return torch.rot90(image, self.turns, dims=(-2, -1))


UPRIGHT = View()
VIEWS: dict[Augmentation, tuple[View, ...]] = {
    "none": (UPRIGHT,),
    "rotations": tuple(View(turns) for turns in range(4)),
    "flips": (UPRIGHT, View(mirrored=True), View(2, mirrored=True), View(2)),
}
ALL_VIEWS = tuple(dict.fromkeys(view for views in VIEWS.values() for view in views))


def view_positions(views: Sequence[View], grid: int) -> Tensor:
    """Where the patches of each view lie on the upright photo: (V, P * P) int64, in reading order."""
    upright = rearrange(torch.arange(grid * grid), "(h w) -> h w", h=grid)
    return torch.stack([view.of(upright).flatten() for view in views])


def choose_augmentation(gains: Mapping[Augmentation, float], orientations: Sequence[Orientation]) -> Augmentation:
    """Which views to add to the memory bank.

    A part that can lie at any angle needs its rotations. Several references show this: rotations reduce the distance
    between them, or an elongated part is tilted in most of them. A single photo shows so little of the part that its
    rotations help in any case.

    Args:
        gains: see :func:`view_gains`.
        orientations: one per reference.
    """
    if not gains:
        return "rotations"
    elongated = [each for each in orientations if each.aspect >= ELONGATED]
    if 2 * len(elongated) > len(orientations) and median(each.tilt for each in elongated) >= TILTED:
        return "rotations"
    best = min(gains, key=lambda kind: gains[kind])
    return best if gains[best] < CLEAR_GAIN else "none"


def view_gains(references: Sequence[ImageFeatures]) -> dict[Augmentation, float]:
    """How much nearer further views bring K references to each other; given the features of each one's ``ALL_VIEWS``.

    Returns:
        Kind of views -> distance with them over distance without, 0..1.
    """
    distances = {}
    for kind, views in VIEWS.items():
        bank = MemoryBank([photo[[ALL_VIEWS.index(view) for view in views]] for photo in references])
        queries = [bank.without(number).similarity(photo[:1]) for number, photo in enumerate(references)]
        distance = 1 - torch.cat(queries).flatten(1)
        distances[kind] = float(distance.topk(max(1, round(TOP_FRACTION * distance.shape[1]))).values.mean())
    least = torch.finfo(torch.float32).eps
    return {kind: distances[kind] / max(distances["none"], least) for kind in distances if kind != "none"}
