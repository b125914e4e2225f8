"""The whole road with small random parts: what it computes means nothing, how it is put together is the product's."""

import pytest

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.model.anomalygpt import AnomalyGPT
from tests.helpers import tiny_model


def thin(seed: int = 0) -> AnomalyGPT:
    """An 8 x 8 grid of patches, and a language model that writes random letters of any script."""
    return tiny_model(seed, image_size=112, rows=0x10000, layers=1).requires_grad_(False)


@pytest.fixture(scope="session")
def thin_model() -> AnomalyGPT:
    return thin()


@pytest.fixture(scope="session")
def thin_transform(thin_model: AnomalyGPT) -> ImageTransform:
    spec = thin_model.encoder.spec
    return ImageTransform(spec.size, spec.mean, spec.std, "squash")
