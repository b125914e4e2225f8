"""Views of a reference photo: how else the same part could lie before the camera."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["none", "rotations", "flips"]


@dataclass(frozen=True)
class View:
    """Quarter turns, anticlockwise, of the photo or of its mirror image. None leaves a corner to fill."""

    turns: int = 0
    mirrored: bool = False

    def of(self, image: Tensor) -> Tensor:
        """A square (…, S, S) seen so."""
        return torch.rot90(torch.flip(image, (-1,)) if self.mirrored else image, self.turns, dims=(-2, -1))


UPRIGHT = View()
VIEWS: dict[Augmentation, tuple[View, ...]] = {
    "none": (UPRIGHT,),
    "rotations": tuple(View(turns) for turns in range(4)),
    "flips": (UPRIGHT, View(mirrored=True), View(2, mirrored=True), View(2)),
}
ALL_VIEWS = tuple(dict.fromkeys(view for views in VIEWS.values() for view in views))


def places(views: Sequence[View], grid: int) -> Tensor:
    """Where the patches of each view lay on the upright photo: (V, P * P) int64, in reading order."""
    upright = torch.arange(grid * grid).unflatten(0, (grid, grid))
    return torch.stack([view.of(upright).flatten() for view in views])
