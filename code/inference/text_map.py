"""Maps by the text features alone, from a photo that is looked at from one or more distances."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.tiles import encode_square

OWN = 1  # the scale at which photos have the encoder's own side


def text_maps(
    model: AnomalyGPT,
    photos: Sequence[Image.Image],
    class_names: Sequence[str],
    transform: ImageTransform,
    scales: Sequence[int] = (OWN,),
) -> tuple[ImageFeatures, Tensor]:
    """B photos' features at the encoder's own side, and their text maps, (B, 1, 224, 224) float32.

    Args:
        transform: brings a photo to the encoder's own side.
        scales: sides to look at, in multiples of it; a pixel's probability is the geometric mean of theirs.
    """
    seen = {
        scale: encode_square(
            model.encode,
            model.encoder.spec,
            torch.stack([transform.enlarged(scale)(photo) for photo in photos]),
        )
        for scale in dict.fromkeys((OWN, *scales))
    }
    maps = [model.anomaly_map(seen[scale], class_names) for scale in scales]
    return seen[OWN], torch.stack([one ** (1 / len(maps)) for one in maps]).prod(dim=0)
