"""A bank of reference patches that knows where each came from: it can be thinned, and a photo or a place left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalygpt.model.coreset import k_centre
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import nearest_similarity

OPPOSITE = -1.0  # the smallest cosine


@dataclass(frozen=True)
class PatchBank:
    """Unit patches of any number of photos.

    Attributes:
        taps: L tensors (M, D_v) float32, of unit length; the rows of all taps belong together.
        owners: (M,) int64, the number of the photo that a patch came from.
        places: (M,) int64, where it lay on the upright photo, in reading order.
    """

    taps: tuple[Tensor, ...]
    owners: Tensor
    places: Tensor

    @classmethod
    def of(cls, photos: Sequence[ImageFeatures], places: Tensor, neighbourhood: int = 1) -> "PatchBank":
        """The patches of photos, each given as the features of its V views.

        Args:
            places: (V, N), the same for every photo.
            neighbourhood: see :func:`unit_patches`.
        """
        rows = [[tap.flatten(0, 1) for tap in unit_patches(photo, neighbourhood)] for photo in photos]
        taps = tuple(torch.cat(layer) for layer in zip(*rows, strict=True))
        owners = torch.arange(len(photos)).repeat_interleave(places.numel())
        return cls(taps, owners.to(taps[0].device), places.flatten().repeat(len(photos)).to(taps[0].device))

    def __len__(self) -> int:
        """M, the patches."""
        return len(self.owners)

    def __getitem__(self, rows: Tensor) -> "PatchBank":
        """Some of the patches, by numbers or flags."""
        return PatchBank(tuple(tap[rows] for tap in self.taps), self.owners[rows], self.places[rows])

    def without(self, photo: int) -> "PatchBank":
        """The bank had one photo not been there."""
        return self[self.owners != photo]

    def thinned(self, keep: int) -> "PatchBank":
        """A coreset of ``keep`` patches, chosen on all taps together."""
        return self if keep >= len(self) else self[k_centre(torch.cat(self.taps, dim=1), keep)]

    def similarities(self, query: Sequence[Tensor]) -> Tensor:
        """The cosine of each patch of B images to the nearest one here.

        Args:
            query: as :func:`unit_patches` gives them.

        Returns:
            (L, B, N) float32 in -1..1.
        """
        return torch.stack([nearest_similarity(tap, bank) for tap, bank in zip(query, self.taps, strict=True)])

    def similarities_elsewhere(self, query: Sequence[Tensor], reach: int) -> Tensor:
        """As :meth:`similarities`, for photos that are in the bank: without the patches near each one's own place.

        Args:
            query: of B images, N patches each.
            reach: patches so far away along rows and columns, or nearer, do not count.

        Returns:
            (L, B, N) float32; -1 where no patch is left.
        """
        count = query[0].shape[1]
        grid = round(count**0.5)
        own = torch.arange(count, device=self.places.device)
        rows = (own[:, None] // grid - self.places // grid).abs()
        columns = (own[:, None] % grid - self.places % grid).abs()
        near = (rows <= reach) & (columns <= reach)  # (N, M)
        layers = [
            torch.stack([(image @ bank.T).masked_fill_(near, OPPOSITE).amax(dim=1) for image in tap])
            for tap, bank in zip(query, self.taps, strict=True)
        ]
        return torch.stack(layers)


def unit_patches(features: ImageFeatures, neighbourhood: int = 1) -> list[Tensor]:
    """The taps of B images as L tensors (B, N, D_v) float32 of unit length.

    Args:
        neighbourhood: each patch becomes the mean of so many patches a side around it (PatchCore, section 3.1); odd,
            1 leaves patches alone.
    """
    return [F.normalize(_averaged(tap.float(), neighbourhood), dim=-1) for tap in features.taps]


def _averaged(tap: Tensor, side: int) -> Tensor:
    if side == 1:
        return tap
    grid = round(tap.shape[1] ** 0.5)
    image = tap.transpose(1, 2).unflatten(2, (grid, grid))  # (B, D_v, P, P)
    mean = F.avg_pool2d(image, side, stride=1, padding=side // 2, count_include_pad=False)
    return mean.flatten(2).transpose(1, 2)
