"""Anomaly maps and image scores: from similarities to references (section 3.2, eq. 2), and from text features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import upsample
from anomalygpt.model.memory_bank import weighted_mean
from anomalygpt.model.multiscale import encode_multiscale

OWN = 1  # the scale at which photos have the encoder's own side
BLUR_REACH = 3.0  # standard deviations that the blur's kernel holds to each side


def encode_scales(
    model: AnomalyGPT, photos: Sequence[Image.Image], transform: ImageTransform, scales: Sequence[int]
) -> dict[int, ImageFeatures]:
    """The features of B photos at the encoder's own side and at each scale.

    Args:
        transform: brings a photo to the encoder's own side.
    """
    encoded = {}
    for scale in dict.fromkeys((OWN, *scales)):
        images = torch.stack([transform.enlarged(scale)(photo) for photo in photos])
        encoded[scale] = encode_multiscale(model.encode, model.encoder.spec, images)
    return encoded


def text_maps(
    model: AnomalyGPT,
    photos: Sequence[Image.Image],
    class_names: Sequence[str],
    transform: ImageTransform,
    scales: Sequence[int] = (OWN,),
) -> tuple[ImageFeatures, Tensor]:
    """Features of B photos at the encoder's own side, and their text maps, (B, 1, 224, 224) float32.

    Args:
        scales: image sides, in multiples of the encoder's own; a pixel's probability is the geometric mean of theirs.
    """
    encoded = encode_scales(model, photos, transform, scales)
    maps = [model.anomaly_map(encoded[scale], class_names) for scale in scales]
    return encoded[OWN], torch.stack([one ** (1 / len(maps)) for one in maps]).prod(dim=0)


def distance_map(similarities: Sequence[Tensor], settings: ReferenceSettings, size: int, grid: int) -> Tensor:
    """Similarities at each scale (B, P, P), P its own -> the map (B, 1, size, size) float32.

    Args:
        grid: patches along the encoder's own side, the unit of ``smoothing``.
    """
    upsampled = [
        upsample(coarse.unsqueeze(1), size)
        if settings.interpolation == "aligned"
        else F.interpolate(coarse.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)
        for coarse in similarities
    ]
    similarity = upsampled[0] if len(upsampled) == 1 else weighted_mean(torch.stack(upsampled), settings.scale_weights)
    return blurred(1 - similarity, settings.smoothing * size / grid)


def blurred(map: Tensor, sigma: float) -> Tensor:
    """(B, 1, S, S) blurred by a Gaussian of ``sigma`` pixels, none at 0; reflected at the border."""
    reach = min(round(BLUR_REACH * sigma), map.shape[-1] - 1)
    return gaussian_blur(map, [2 * reach + 1] * 2, [sigma, sigma]) if reach else map


def top_mean(maps: Tensor, share: float) -> Tensor:
    """Image scores: maps (B, 1, S, S) -> (B,), the mean of the highest ``share`` of pixels; at 0 the maximum."""
    pixels = maps.flatten(1)
    return pixels.topk(max(1, round(share * pixels.shape[1])), dim=1).values.mean(dim=1)
