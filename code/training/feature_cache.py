"""Features of a frozen encoder, kept for photos that come again."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from anomalygpt.model.encoder import ImageFeatures


class FeatureCache:
    """Encodes (B, 3, S, S) images, but for those that it has kept; the features are the encoder's own.

    An image is kept when it comes a second time, so that simulated defects, which are new in each epoch, take no room.

    Args:
        room: how many images are kept.
    """

    def __init__(self, encode: Callable[[Tensor], ImageFeatures], room: int) -> None:
        self.encode, self.room = encode, room
        self._seen: set[bytes] = set()
        self._kept: dict[bytes, ImageFeatures] = {}

    def __call__(self, images: Tensor) -> ImageFeatures:
        keys = [hashlib.blake2b(image.cpu().numpy().tobytes(), digest_size=16).digest() for image in images]
        rows = {key: self._kept[key] for key in keys if key in self._kept}
        if new := {key: place for place, key in enumerate(keys) if key not in rows}:
            encoded = self.encode(images[list(new.values())])
            for at, key in enumerate(new):
                # A copy, since a slice would keep the whole batch.
                taps = tuple(tap[at : at + 1].clone() for tap in encoded.taps)
                rows[key] = ImageFeatures(taps, encoded.embedding[at : at + 1].clone())
                if key in self._seen and len(self._kept) < self.room:
                    self._kept[key] = rows[key]
            self._seen.update(new)
        by_tap = zip(*(rows[key].taps for key in keys), strict=True)
        return ImageFeatures(tuple(torch.cat(tap) for tap in by_tap), torch.cat([rows[key].embedding for key in keys]))
