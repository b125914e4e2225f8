"""Photos of one part that judge each other, where nobody has a good one: mutual scoring (MuSc, Li et al., 2024).

What a photo has in common with most others is good; what few of them have is a defect. So most photos must be good, or
their defects must differ.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256

import torch
from PIL import Image
from torch import Tensor

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.anomaly_map import OWN, concatenated, distance_map, encode_scales, image_scores
from anomalygpt.inference.calibration import Calibration, calibrate
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import unit_patches, weighted_mean
from anomalygpt.model.prompt_learner import MAP_SIZE

GROUP = 200  # photos that judge each other; the time grows with the square
FEWEST = 3
NEAREST = 0.3  # fraction of the other photos, those with the most similar patch, that judge a patch
TYPICAL = 0.35  # quantile of the scores near which the good ones lie, whether few or two thirds are defective


class UnlabelledPhotos:
    """The maps of three or more photos of one part that judge each other, and a calibration by their scores."""

    @torch.inference_mode()
    def __init__(
        self, model: AnomalyGPT, settings: ReferenceSettings, transform: ImageTransform, photos: Iterable[Image.Image]
    ) -> None:
        self.settings, self._grid = settings, model.encoder.spec.grid
        self._numbers: dict[bytes, int] = {}
        encoded: list[dict[int, ImageFeatures]] = []
        for photo in photos:
            self._numbers[_key(photo)] = len(encoded)
            encoded.append(encode_scales(model, [photo], transform, settings.scales))
        if len(encoded) < FEWEST:
            raise UserError(f"{len(encoded)} photos to judge each other: expected {FEWEST} or more, better dozens")
        self._features = concatenated([scales[OWN] for scales in encoded])
        groups = torch.arange(len(encoded)).chunk(max(1, round(len(encoded) / GROUP)))
        self._similarities = [  # by scale, (N, P, P)
            torch.cat([mutual_similarity([encoded[i][scale] for i in group], settings.tap_weights) for group in groups])
            for scale in settings.scales
        ]

    def _maps(self, numbers: Sequence[int]) -> Tensor:
        return distance_map([each[numbers] for each in self._similarities], self.settings, MAP_SIZE, self._grid)

    def anomaly_maps(self, photos: Sequence[Image.Image], class_name: str = "") -> tuple[ImageFeatures, Tensor]:
        """See ``References``; raises :class:`UserError` where a photo is not among those that judge each other."""
        numbers = [self._numbers.get(_key(photo), -1) for photo in photos]
        if -1 in numbers:
            raise UserError("a photo that is not among those that judge each other: give all of them at once")
        return self._features[numbers], self._maps(numbers)

    def calibration(self, false_alarm_rate: float) -> Calibration:
        """Takes the scores' lower mode for the good photos', see ``calibrate``, and a typical one for a reference's."""
        maps = [self._maps([number]) for number in range(len(self._features))]
        scores = [float(image_scores(map, self.settings)) for map in maps]
        typical = sorted(range(len(maps)), key=scores.__getitem__)[round(TYPICAL * (len(maps) - 1))]
        observed = dict.fromkeys(scores)
        return calibrate([scores[typical]], maps[typical], false_alarm_rate, references=1, observed=observed)


def _key(photo: Image.Image) -> bytes:
    return sha256(f"{photo.mode} {photo.size}".encode() + photo.tobytes()).digest()


def mutual_similarity(photos: Sequence[ImageFeatures], tap_weights: Sequence[float] = ()) -> Tensor:
    """Features of N single photos -> (N, P, P) float32: how similar each patch is to other photos' nearest patches.

    The mean over the most similar photos counts.
    """
    units, grid = [unit_patches(photo) for photo in photos], photos[0].grid
    nearest = torch.full((len(photos), len(photos), grid * grid), -1.0, device=units[0][0].device)
    for one, mine in enumerate(units):
        for two, others in enumerate(units[:one]):
            layers = [tap[0] @ other[0].T for tap, other in zip(mine, others, strict=True)]
            nearest[one, two] = weighted_mean(torch.stack([layer.amax(dim=1) for layer in layers]), tap_weights)
            nearest[two, one] = weighted_mean(torch.stack([layer.amax(dim=0) for layer in layers]), tap_weights)
    judges = max(1, round(NEAREST * (len(photos) - 1)))
    return nearest.topk(judges, dim=1).values.mean(dim=1).unflatten(1, (grid, grid))
