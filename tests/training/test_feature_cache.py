"""Features that are kept: the encoder's own, of images that come again."""

import torch

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.training.loop import FeatureCache


class Encoder:
    """Two taps and an embedding that tell images apart; counts the images that it encodes."""

    def __init__(self):
        self.encoded = 0

    def __call__(self, images: torch.Tensor) -> ImageFeatures:
        self.encoded += len(images)
        patches = images.flatten(1).reshape(len(images), 4, -1)
        return ImageFeatures((patches, patches.square()), images.mean(dim=(1, 2, 3))[:, None])


def test_images_that_come_again_are_encoded_twice_and_the_features_stay_the_same():
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    encoder, expected = Encoder(), Encoder()(images)
    cache = FeatureCache(encoder, room=2)
    for rows, encoded in (([0, 1, 2], 3), ([1, 0, 1], 2), ([3, 1, 0], 1), ([2, 0, 3], 2), ([2, 3, 5, 1], 3)):
        before = encoder.encoded
        found = cache(images[rows])
        assert encoder.encoded - before == encoded, rows
        assert torch.equal(found.embedding, expected.embedding[rows])
        assert all(torch.equal(mine, other[rows]) for mine, other in zip(found.taps, expected.taps, strict=True))
