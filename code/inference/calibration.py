"""From which value on a pixel of the map is anomalous, told by the reference photos alone."""

import torch
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory

MARGIN = 1.1  # above the strangest good patch: a part that was never photographed differs a little more
SHIFT_SHARE = 1 / 32  # half a patch on a 16 x 16 grid
BRIGHTNESS = 0.15  # in units of the normalised image
LOWEST = 0.05  # the same photo twice differs in nothing, and then everything would be anomalous


def distance_threshold(references: ImageFeatures, shifted: ImageFeatures) -> float:
    """The map value above which a patch counts as anomalous.

    With several references each is held against the others; with a single one, against itself taken again.

    Args:
        references: features of the K reference photos.
        shifted: features of the same photos after :func:`taken_again`; used for K = 1.
    """
    if len(references) == 1:
        lowest = PatchMemory(references).similarity(shifted).min()
    else:
        lowest = torch.stack([_left_out(references, k) for k in range(len(references))]).min()
    return max(LOWEST, MARGIN * float(1 - lowest))


def _left_out(references: ImageFeatures, k: int) -> Tensor:
    """The lowest similarity of photo k's patches to the other photos."""
    others = [i for i in range(len(references)) if i != k]
    return PatchMemory(references[others]).similarity(references[[k]]).min()


def taken_again(images: Tensor) -> Tensor:
    """Normalised photos (K, 3, S, S) as a second photo of the same part would be: shifted and a little brighter."""
    shift = round(images.shape[-1] * SHIFT_SHARE)
    padded = torch.nn.functional.pad(images, (shift, shift, shift, shift), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]] + BRIGHTNESS
