"""The memory bank: similarity of each query patch to the nearest reference patch (AnomalyGPT section 3.2, eq. 2)."""

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from anomalygpt.model.coreset import k_centre
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import upsample

QUERY_CHUNK = 4096  # query patches compared at a time: bounds the similarity matrix, not the result


class MemoryBank:
    """Unit-length patch features of reference photos.

    Args:
        references: the features of K photos; or of each of K photos, the features of its V views.
        positions: (V, P * P) int64, where the patches of each view lie on the upright photo, in reading order; None
            where each view is upright.

    Attributes:
        taps: L tensors (M, D_v) float32; rows of the same number belong to one patch.
        photos: (M,) int64, the number of the photo that a patch comes from.
        positions: (M,) int64, the patch's position on the upright photo.

    Raises:
        ValueError: there is no photo.
    """

    def __init__(self, references: ImageFeatures | Sequence[ImageFeatures], positions: Tensor | None = None) -> None:
        if len(references) == 0:
            raise ValueError("a memory bank needs at least one reference photo")
        if isinstance(references, ImageFeatures):
            references = [references[[photo]] for photo in range(len(references))]
        units = [unit_patches(photo) for photo in references]
        self.taps = tuple(torch.cat([tap.flatten(0, 1) for tap in layer]) for layer in zip(*units, strict=True))
        if positions is None:
            positions = torch.arange(units[0][0].shape[1]).expand(len(units[0][0]), -1)
        device = self.taps[0].device
        self.photos = torch.arange(len(units)).repeat_interleave(positions.numel()).to(device)
        self.positions = positions.flatten().repeat(len(units)).to(device)

    def __len__(self) -> int:
        """M, the number of patches."""
        return len(self.photos)

    def __getitem__(self, rows: Tensor) -> "MemoryBank":
        """Some of the patches, by index or by mask."""
        chosen = copy(self)
        chosen.taps = tuple(tap[rows] for tap in self.taps)
        chosen.photos, chosen.positions = self.photos[rows], self.positions[rows]
        return chosen

    def without(self, photo: int) -> "MemoryBank":
        """The bank without one photo, as if it had never been added."""
        return self[self.photos != photo]

    def coreset(self, size: int) -> "MemoryBank":
        """A k-centre coreset of ``size`` patches, chosen on all taps together; the bank itself where it has no more."""
        return self if size >= len(self) else self[k_centre(torch.cat(self.taps, dim=1), size)]

    def similarity(
        self, query: ImageFeatures, tap_weights: Sequence[float] = (), exclusion_radius: int | None = None
    ) -> Tensor:
        """Cosine similarity to the nearest reference patch, averaged over the taps.

        Args:
            query: features of B images.
            tap_weights: one per tap; empty weighs them alike.
            exclusion_radius: for a photo that is in the bank itself: reference patches up to so many rows and columns
                from the query patch's own position are left out. None compares with all.

        Returns:
            (B, P, P) float32 in -1..1; -1 where no reference patch is left.
        """
        near = None if exclusion_radius is None else self._near(query.grid, exclusion_radius)
        layers = [
            nearest_similarity(tap, bank)
            if near is None
            else torch.stack([(image @ bank.T).masked_fill_(near, -1.0).amax(dim=1) for image in tap])
            for tap, bank in zip(unit_patches(query), self.taps, strict=True)
        ]
        return rearrange(weighted_mean(torch.stack(layers), tap_weights), "b (h w) -> b h w", h=query.grid)

    def _near(self, grid: int, radius: int) -> Tensor:
        """(P * P, M) bool: which reference patches lie around which position."""
        own = torch.arange(grid * grid, device=self.positions.device)[:, None]
        rows = (own // grid - self.positions // grid).abs()
        columns = (own % grid - self.positions % grid).abs()
        return (rows <= radius) & (columns <= radius)

    def anomaly_map(self, query: ImageFeatures, size: int) -> Tensor:
        """Features of B images -> (B, 1, size, size) float32: 1 - similarity, upsampled, as the paper has it."""
        return 1 - upsample(self.similarity(query).unsqueeze(1), size)


def unit_patches(features: ImageFeatures) -> list[Tensor]:
    """The taps of B images as L tensors (B, P * P, D_v) float32 of unit length."""
    return [F.normalize(tap.float(), dim=-1) for tap in features.taps]


def nearest_similarity(query: Tensor, bank: Tensor) -> Tensor:
    """Unit vectors (B, N, D) against a bank (M, D) -> the largest cosine of each, (B, N)."""
    flat = query.flatten(0, 1)
    best = [(part @ bank.T).amax(dim=1) for part in flat.split(QUERY_CHUNK)]
    return torch.cat(best).unflatten(0, query.shape[:2])


def weighted_mean(layers: Tensor, weights: Sequence[float]) -> Tensor:
    """(L, …) -> (…): the mean over the first dimension; no weights at all weigh all alike."""
    if not weights:
        return layers.mean(dim=0)
    shares = torch.tensor(weights, device=layers.device) / sum(weights)
    return torch.tensordot(shares, layers, dims=1)
