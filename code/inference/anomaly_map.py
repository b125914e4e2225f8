"""Anomaly maps and image scores: from similarities to references (section 3.2, eq. 2), and from text features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import weighted_mean

BACKGROUND = 0.8  # share of a map's pixels that belong to its background: most defects are smaller than the rest
LOWEST_BACKGROUND = 0.0025  # a photo that is in the memory bank itself has none
BASE = 1  # the scale at which photos have the encoder's own side


def encode_scales(
    model: AnomalyGPT, photos: Sequence[Image.Image], transform: ImageTransform, scales: Sequence[int]
) -> dict[int, ImageFeatures]:
    """The features of B photos at the encoder's own side and at each scale."""
    transforms = {scale: transform.enlarged(scale) for scale in (BASE, *scales)}
    return {scale: model.encode(torch.stack([*map(of, photos)])) for scale, of in transforms.items()}


def concatenated(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    """Several batches as one."""
    taps = tuple(torch.cat(layer) for layer in zip(*(part.taps for part in parts), strict=True))
    return ImageFeatures(taps, torch.cat([part.embedding for part in parts]))


def text_maps(
    model: AnomalyGPT, photos: Sequence[Image.Image], class_name: str, transform: ImageTransform, scales: Sequence[int]
) -> tuple[ImageFeatures, Tensor]:
    """Features of B photos at the encoder's own side, and their text maps, (B, 1, 224, 224) float32.

    A pixel's probability is the geometric mean of those at all scales, image sides in multiples of the encoder's own.
    """
    encoded = encode_scales(model, photos, transform, scales)
    maps = [model.anomaly_map(encoded[scale], [class_name] * len(photos)) for scale in scales]
    return encoded[BASE], torch.stack([one ** (1 / len(maps)) for one in maps]).prod(dim=0)


def distance_map(similarities: Sequence[Tensor], settings: ReferenceSettings, size: int, grid: int) -> Tensor:
    """Similarities (B, P, P), with a P for each scale -> the map (B, 1, size, size) float32.

    ``grid``: patches along the encoder's own side, of which ``smoothing`` is a multiple.
    """
    aligned, side = settings.interpolation == "aligned", (size, size)
    upsampled = [F.interpolate(each[:, None], side, mode="bilinear", align_corners=aligned) for each in similarities]
    similarity = upsampled[0] if len(upsampled) == 1 else weighted_mean(torch.stack(upsampled), settings.scale_weights)
    return blurred(1 - similarity, settings.smoothing * size / grid)


def blurred(map: Tensor, sigma: float) -> Tensor:
    """(B, 1, S, S) blurred by a Gaussian of ``sigma`` pixels, none at 0; reflected at the border."""
    reach = min(round(3 * sigma), map.shape[-1] - 1)  # of the kernel, to each side
    if not reach:
        return map
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=map.dtype, device=map.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(map, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def image_scores(maps: Tensor, settings: ReferenceSettings) -> Tensor:
    """Maps from references (B, 1, S, S) -> (B,): the highest pixels' mean, over the background's power ``contrast``."""
    highest = top_mean(maps, settings.top_share)
    if not settings.contrast:
        return highest
    background = maps.flatten(1).float().quantile(BACKGROUND, dim=1).clamp(min=LOWEST_BACKGROUND)
    return highest / background**settings.contrast


def top_mean(maps: Tensor, fraction: float) -> Tensor:
    """Image scores: maps (B, 1, S, S) -> (B,), the mean of the highest ``fraction`` of pixels; at 0 the maximum."""
    pixels = maps.flatten(1)
    return pixels.topk(max(1, round(fraction * pixels.shape[1])), dim=1).values.mean(dim=1)
