"""The few-shot memory: distance of each query patch to the nearest reference patch (AnomalyGPT section 3.2, eq. 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import upsample

QUERY_CHUNK = 4096  # query patches compared at a time: bounds the similarity matrix, not the result


class PatchMemory:
    """The normalised patches of the reference photos, one bank a tap.

    Args:
        references: the features of K reference photos (or views of them).
    """

    def __init__(self, references: ImageFeatures) -> None:
        if len(references) == 0:
            raise ValueError("a patch memory needs at least one reference photo")
        self.banks = [_unit(tap).flatten(0, 1) for tap in references.taps]  # L x (K * P * P, D_v)

    def similarity(self, query: ImageFeatures) -> Tensor:
        """Cosine similarity to the nearest reference patch, averaged over the taps.

        Args:
            query: features of B images.

        Returns:
            (B, P, P) float32 in -1..1.
        """
        layers = [nearest_similarity(_unit(tap), bank) for tap, bank in zip(query.taps, self.banks, strict=True)]
        return torch.stack(layers).mean(dim=0).unflatten(1, (query.grid, query.grid))

    def anomaly_map(self, query: ImageFeatures, size: int) -> Tensor:
        """Features of B images -> (B, 1, size, size) float32: 1 - similarity, upsampled."""
        return 1 - upsample(self.similarity(query).unsqueeze(1), size)


def nearest_similarity(query: Tensor, bank: Tensor) -> Tensor:
    """Unit vectors (B, N, D) against a bank (M, D) -> the largest cosine of each, (B, N)."""
    flat = query.flatten(0, 1)
    best = [(part @ bank.T).amax(dim=1) for part in flat.split(QUERY_CHUNK)]
    return torch.cat(best).unflatten(0, query.shape[:2])


def _unit(tap: Tensor) -> Tensor:
    return F.normalize(tap.float(), dim=-1)
