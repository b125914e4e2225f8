"""The memory bank: similarity of each query patch to the nearest reference patch (AnomalyGPT section 3.2, eq. 2)."""

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import upsample

# Query and reference patches compared at a time: bounds the similarity matrix, not the result.
QUERY_CHUNK, BANK_CHUNK = 4096, 2**15
HALF_ABOVE = 2**17  # patches from which a bank is kept in float16, 0.8 GiB at 2**18; they are compared in float32
PROJECTED_WIDTH = 128  # distances survive a random projection to this width (Johnson and Lindenstrauss)


class MemoryBank:
    """Unit-length patches of reference photos: ``taps``, L tensors (M, D_v) float32, float16 above ``HALF_ABOVE``.

    ``references`` are the features of K photos; or, of each of K photos, the features of its V views. The bank has the
    number of each patch's photo as ``photos``, (M,) int64.
    """

    def __init__(self, references: ImageFeatures | Sequence[ImageFeatures]) -> None:
        if isinstance(references, ImageFeatures):
            references = [references[[photo]] for photo in range(len(references))]
        units = [unit_patches(photo) for photo in references]
        kept = torch.float16 if sum(taps[0].shape[:2].numel() for taps in units) > HALF_ABOVE else torch.float32
        layers = zip(*units, strict=True)
        self.taps = tuple(torch.cat([tap.flatten(0, 1).to(kept) for tap in layer]) for layer in layers)
        counts = torch.tensor([taps[0].shape[:2].numel() for taps in units])
        self.photos = torch.arange(len(units)).repeat_interleave(counts).to(self.taps[0].device)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, rows: Tensor) -> "MemoryBank":
        """Some of the patches, by index or by mask."""
        chosen = copy(self)
        chosen.taps = tuple(tap[rows] for tap in self.taps)
        chosen.photos = self.photos[rows]
        return chosen

    def coreset(self, size: int) -> "MemoryBank":
        """A k-centre coreset of ``size`` patches, chosen on all taps together; the bank itself where it has no more."""
        return self if size >= len(self) else self[k_centre(torch.cat(self.taps, dim=1), size)]

    def similarity(self, query: ImageFeatures, tap_weights: Sequence[float] = ()) -> Tensor:
        """Cosine similarity of B images to the nearest reference patch, averaged over the taps: (B, P, P) float32."""
        pairs = zip(unit_patches(query), self.taps, strict=True)
        layers = torch.stack([nearest_similarity(tap, bank) for tap, bank in pairs])
        return rearrange(weighted_mean(layers, tap_weights), "b (h w) -> b h w", h=query.grid)

    def anomaly_map(self, query: ImageFeatures, size: int) -> Tensor:
        """Features of B images -> (B, 1, size, size) float32: 1 - similarity, upsampled, as in the paper."""
        return 1 - upsample(self.similarity(query).unsqueeze(1), size)


def unit_patches(features: ImageFeatures) -> list[Tensor]:
    """The taps of B images as L tensors (B, P * P, D_v) float32 of unit length."""
    return [F.normalize(tap.float(), dim=-1) for tap in features.taps]


def nearest_similarity(query: Tensor, bank: Tensor) -> Tensor:
    """Unit vectors (B, N, D) against a bank (M, D) -> the largest cosines (B, N)."""
    flat = query.flatten(0, 1)
    best = torch.full_like(flat[:, 0], -1.0)
    for block in bank.split(BANK_CHUNK):
        columns = block.to(flat.dtype).T
        best = torch.maximum(best, torch.cat([(part @ columns).amax(dim=1) for part in flat.split(QUERY_CHUNK)]))
    return best.unflatten(0, query.shape[:2])


def weighted_mean(layers: Tensor, weights: Sequence[float]) -> Tensor:
    """(L, …) -> (…): the mean over the first dimension; without weights, the plain mean."""
    if not weights:
        return layers.mean(dim=0)
    fractions = torch.tensor(weights, device=layers.device) / sum(weights)
    return torch.tensordot(fractions, layers, dims=1)


def k_centre(patches: Tensor, keep: int) -> Tensor:
    """Greedy k-centre selection (PatchCore, section 3.2): (M, D) -> (keep,) int64, rising; 1 <= keep <= M.

    The first is nearest to the mean, so that the choice depends on the patches only; each next is furthest from all.
    """
    points = patches.float()
    if points.shape[1] > PROJECTED_WIDTH:
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same patches are chosen on every device
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
