"""The complete model with small random parts: its results mean nothing, but it is put together as the product is."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

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


@contextmanager
def batch_sizes(module: nn.Module) -> Iterator[list[int]]:
    """How many images each call of a module is given."""
    sizes: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()
