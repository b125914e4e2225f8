"""Whether further views of the references help: decided by the references themselves, for ``augmentation: auto``."""

from collections.abc import Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from anomalygpt.inference.reference_views import ALL_VIEWS, VIEWS, Augmentation
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import nearest_similarity
from anomalygpt.model.foreground import Lie
from anomalygpt.model.patch_bank import unit_patches

DECIDED_BY = 8  # so many references decide; further ones do not change their mind
# Four views of anything bring references a little nearer to each other (textures and aligned parts: to 0.87-0.99 of
# their distance); parts that are put down at any angle (screw, hazelnut) come to 0.52-0.86.
CLEAR_GAIN = 0.86
STRANGEST = 0.05  # the share of patches that is compared: a turn is seen where parts are strange, not on average
ELONGATED = 1.6  # only of such a part can it be told how it lies
ASKEW = 7.0  # degrees; an aligned part (toothbrush, transistor's legs) keeps within 3


def choose_augmentation(gains: Mapping[Augmentation, float], lies: Sequence[Lie]) -> Augmentation:
    """Which views to remember.

    A part that lies at any angle needs its rotations. With several references this shows in how much nearer they
    come to each other by them, or in that a long part lies askew in most. One photo alone does not tell, and shows so
    little of a part that its rotations help, whatever it is.

    Args:
        gains: the references' distance from each other with the views over that without, for each kind of views;
            empty for a single reference.
        lies: of each reference.
    """
    if not gains:
        return "rotations"
    long = [lie for lie in lies if lie.elongation >= ELONGATED]
    if 2 * len(long) > len(lies) and median(lie.askew for lie in long) >= ASKEW:
        return "rotations"
    best = min(gains, key=lambda kind: gains[kind])
    return best if gains[best] < CLEAR_GAIN else "none"


def view_gains(references: Sequence[ImageFeatures]) -> dict[Augmentation, float]:
    """How much nearer further views bring K references to each other.

    Args:
        references: the features of each one's ``ALL_VIEWS``.

    Returns:
        Kind of views -> distance with them over distance without, 0..1; nothing for one reference.
    """
    if len(references) < 2:
        return {}
    patches = [unit_patches(views) for views in references]
    near = [[_near(patches, k, other) for other in range(len(patches)) if other != k] for k in range(len(patches))]
    apart = {kind: _strangest(near, [ALL_VIEWS.index(view) for view in views]) for kind, views in VIEWS.items()}
    return {kind: apart[kind] / max(apart["none"], torch.finfo(torch.float32).eps) for kind in apart if kind != "none"}


def _near(patches: Sequence[Sequence[Tensor]], photo: int, other: int) -> Tensor:
    """Cosines of an upright photo's patches to the nearest of another's, one view at a time: (L, V, N)."""
    return torch.stack(
        [
            torch.stack([nearest_similarity(query[:1], view)[0] for view in bank])
            for query, bank in zip(patches[photo], patches[other], strict=True)
        ]
    )


def _strangest(near: Sequence[Sequence[Tensor]], views: Sequence[int]) -> float:
    """The mean distance of the strangest patches, when so many views of the others are remembered."""
    distances = []
    for others in near:
        best = torch.stack(list(others))[:, :, views].amax(dim=(0, 2))  # (L, N): nearest of all others and views
        distance = 1 - best.mean(dim=0)
        distances.append(distance.topk(max(1, round(STRANGEST * len(distance)))).values.mean())
    return float(torch.stack(distances).mean())
