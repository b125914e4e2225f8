"""Which patches show the part, where photos have a plain background, and how the part lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN = 0.25  # mean distance (1 - cosine) of border patches from their mean direction, up to which they are alike
BACKGROUND_WEIGHT = 0.3  # how much a distance on the background counts
PART_SHARE = (0.05, 0.9)  # a part that covers less or more of the photo leaves the border no background to be


@dataclass(frozen=True)
class Background:
    """What a plain background looks like.

    Attributes:
        direction: (D_v,) of unit length: the mean border patch of the references, in the last tap.
        distance: patches nearer to it than this show background.
    """

    direction: Tensor
    distance: float

    def covers(self, patches: Tensor) -> Tensor:
        """Unit patches (B, N, D_v) of the last tap -> (B, N) bool, False on the part and on its rim of one patch."""
        part = (1 - patches @ self.direction) >= self.distance
        grid = round(part.shape[1] ** 0.5)
        image = part.float().unflatten(1, (grid, grid)).unsqueeze(1)  # (B, 1, P, P)
        return F.max_pool2d(image, 3, stride=1, padding=1).flatten(1) == 0


def find_background(photos: Sequence[Tensor]) -> Background | None:
    """The background of K references, or None where it is not plain.

    Args:
        photos: unit patches (N, D_v) of each, in the last tap.
    """
    patches = torch.stack(list(photos))
    border = _border(patches)
    direction = F.normalize(patches[:, border].flatten(0, 1).mean(dim=0), dim=0)
    distances = 1 - patches @ direction  # (K, N)
    edge = distances[:, border]
    limit = _two_groups(distances.flatten())
    share = float((distances > limit).float().mean())
    plain = float(edge.median()) < PLAIN and float((edge > limit).float().mean()) < share / 4
    return Background(direction, limit) if plain and PART_SHARE[0] < share < PART_SHARE[1] else None


@dataclass(frozen=True)
class Lie:
    """How a part lies in its photo.

    Attributes:
        elongation: its length over its width, at least 1.
        askew: degrees between its long axis and the nearer side of the photo, 0..45.
    """

    elongation: float
    askew: float


def lie_of(photo: Tensor) -> Lie:
    """How the part lies, told from the patches that differ from the photo's border.

    Args:
        photo: unit patches (N, D_v) in the last tap.
    """
    grid = round(len(photo) ** 0.5)
    distances = 1 - photo @ F.normalize(photo[_border(photo[None])].mean(dim=0), dim=0)
    part = (distances > _two_groups(distances)).float().cpu()
    rows, columns = (torch.arange(grid * grid) // grid).float(), (torch.arange(grid * grid) % grid).float()
    points = torch.stack([columns, rows])
    centred = points - (points * part).sum(dim=1, keepdim=True) / part.sum()
    spread = (part * centred) @ centred.T / part.sum() + torch.eye(2) / 12  # a patch has an extent of its own
    lengths, axes = torch.linalg.eigh(spread)  # rising
    angle = math.degrees(math.atan2(float(axes[1, 1]), float(axes[0, 1]))) % 90
    return Lie(float((lengths[1] / lengths[0]).sqrt()), min(angle, 90 - angle))


def _border(patches: Tensor) -> Tensor:
    """(K, N, D_v) -> (N,) bool, True on the outermost patches."""
    grid = round(patches.shape[1] ** 0.5)
    border = torch.ones(grid, grid, dtype=torch.bool, device=patches.device)
    border[1:-1, 1:-1] = False
    return border.flatten()


def _two_groups(values: Tensor) -> float:
    """The value that divides numbers into the two groups of least variance (Otsu)."""
    ordered = values.sort().values.double()
    count = torch.arange(1, len(ordered), device=values.device)
    total = ordered.sum()
    low = ordered.cumsum(dim=0)[:-1]
    between = (low / count - (total - low) / (len(ordered) - count)) ** 2 * count * (len(ordered) - count)
    split = int(between.argmax())
    return float((ordered[split] + ordered[split + 1]) / 2)
