"""Greedy k-centre: the few patches of a large memory that leave no other patch far away (PatchCore, section 3.2)."""

import torch
from torch import Tensor

PROJECTED_WIDTH = 128  # distances survive a random projection to this width (Johnson and Lindenstrauss)
SEED = 0


def k_centre(patches: Tensor, keep: int) -> Tensor:
    """Chooses patches one after the other, each time the one furthest from all that were chosen.

    The first is the one nearest to the mean, so that the choice depends on the patches alone.

    Args:
        patches: (M, D), any float dtype.
        keep: how many, at least 1; M or more keeps all.

    Returns:
        (min(keep, M),) int64, rising.

    Raises:
        ValueError: there is no patch, or none is to be kept.
    """
    if keep < 1 or len(patches) == 0:
        raise ValueError(f"a coreset of {keep} from {len(patches)} patches: expected at least 1 of at least 1")
    if keep >= len(patches):
        return torch.arange(len(patches), device=patches.device)
    points = patches.float()
    if points.shape[1] > PROJECTED_WIDTH:
        generator = torch.Generator().manual_seed(SEED)  # on the CPU: the same patches are chosen on every device
        directions = torch.randn(points.shape[1], PROJECTED_WIDTH, generator=generator) / PROJECTED_WIDTH**0.5
        points = points @ directions.to(points.device)
    squares = points.square().sum(dim=1)
    newest = int((points - points.mean(dim=0)).square().sum(dim=1).argmin())
    chosen = [newest]
    distance = torch.full_like(squares, torch.inf)
    while len(chosen) < keep:
        to_newest = squares + squares[newest] - 2 * (points @ points[newest])
        distance = torch.minimum(distance, to_newest)
        distance[newest] = -torch.inf  # rounding never lets a patch be chosen twice
        newest = int(distance.argmax())
        chosen.append(newest)
    return torch.tensor(sorted(chosen), device=patches.device)
