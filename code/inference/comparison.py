"""From patches to a map and a score: how a photo is compared with the remembered ones (section 3.2, eq. 2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from anomalygpt.inference.reference_settings import ReferenceSettings
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.foreground import BACKGROUND_WEIGHT, Background
from anomalygpt.model.image_decoder import upsample
from anomalygpt.model.patch_bank import PatchBank, unit_patches

BLUR_REACH = 3.0  # standard deviations that the blur's kernel holds to each side


@dataclass(frozen=True)
class ScaleMemory:
    """What is remembered at one scale.

    Attributes:
        background: None where the references have no plain one, or it is not looked for.
        usual: how far good patches usually are from the memory, one number a tap; None leaves distances as they are.
        reach: for a photo that is in the bank: a patch is not compared with what lay within so many patches of its own
            place; None compares it with all.
    """

    bank: PatchBank
    background: Background | None = None
    usual: Tensor | None = None
    reach: int | None = None

    def closeness(self, query: ImageFeatures, settings: ReferenceSettings) -> Tensor:
        """How near each patch of B images is to the nearest remembered one, over all taps.

        Returns:
            (B, P, P) float32; 1 is the same patch.
        """
        patches = unit_patches(query, settings.neighbourhood)
        near = self._joined(self._similarities(patches), settings)
        if self.background is not None:
            covered = self.background.covers(patches[-1])
            near = torch.where(covered, 1 - BACKGROUND_WEIGHT * (1 - near), near)
        return near.unflatten(1, (query.grid, query.grid))

    def _similarities(self, patches: Sequence[Tensor]) -> Tensor:
        if self.reach is None:
            return self.bank.similarities(patches)
        return self.bank.similarities_elsewhere(patches, self.reach)

    def _joined(self, similarities: Tensor, settings: ReferenceSettings) -> Tensor:
        """Cosines (L, B, N) -> closeness (B, N)."""
        near = similarities if settings.distance == "cosine" else 1 - euclid(similarities)
        if self.usual is not None:
            near = 1 - (1 - near) / self.usual[:, None, None].to(near.device)
        return weighted_mean(near, settings.tap_weights)


def euclid(cosines: Tensor) -> Tensor:
    """Cosines of unit patches -> the lengths of their differences, 0..2."""
    return (2 * (1 - cosines)).clamp(min=0).sqrt()


def weighted_mean(layers: Tensor, weights: Sequence[float]) -> Tensor:
    """(L, …) -> (…): the mean over the first dimension; no weights weigh all alike."""
    if not weights:
        return layers.mean(dim=0)
    shares = torch.tensor(weights, device=layers.device) / sum(weights)
    return torch.tensordot(shares, layers, dims=1)


def distance_map(scales: Sequence[Tensor], settings: ReferenceSettings, size: int, grid: int) -> Tensor:
    """Closeness at each scale (B, P, P), P its own -> the map (B, 1, size, size) float32.

    Args:
        grid: patches along the encoder's own side, the unit of ``smoothing``.
    """
    enlarged = [_enlarged(near.unsqueeze(1), size, settings) for near in scales]
    near = enlarged[0] if len(enlarged) == 1 else weighted_mean(torch.stack(enlarged), settings.scale_weights)
    return blurred(1 - near, settings.smoothing * size / grid)


def _enlarged(coarse: Tensor, size: int, settings: ReferenceSettings) -> Tensor:
    if settings.interpolation == "aligned":
        return upsample(coarse, size)
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)


def blurred(map: Tensor, sigma: float) -> Tensor:
    """(B, 1, S, S) blurred by a Gaussian of ``sigma`` pixels; none at 0. The border is mirrored."""
    reach = min(round(BLUR_REACH * sigma), map.shape[-1] - 1)
    return gaussian_blur(map, [2 * reach + 1] * 2, [sigma, sigma]) if reach else map


def top_mean(maps: Tensor, share: float) -> Tensor:
    """Image scores: maps (B, 1, S, S) -> (B,), the mean of the highest ``share`` of pixels; at 0 the maximum."""
    pixels = maps.flatten(1)
    return pixels.topk(max(1, round(share * pixels.shape[1])), dim=1).values.mean(dim=1)
