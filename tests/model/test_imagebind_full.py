"""ImageBind-Huge at full size against the released code's numbers (about 5 GB of memory and a few minutes)."""

import pytest
import torch
from safetensors.torch import load_file

from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.imagebind.tokenizer import tokenize
from tests.parity.test_parity import difference
from tests.parity.weights import KEEP, tensor
from tests.shared_data import shared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOLERANCE = 2e-5
SENTENCES = ["a photo of a flawless bottle.", "a photo of the broken bottle."]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(shared("parity/full_expected.safetensors"))


@pytest.fixture(scope="module")
def imagebind(expected: dict[str, torch.Tensor]) -> ImageBind:
    """The whole encoder, its weights made by name, one after the other."""
    with torch.device("meta"):
        model = ImageBind()
    for name, meta in model.state_dict().items():
        temperature = name.rsplit(".", 1)[-1] in KEEP
        made = torch.tensor(1 / 0.07).log() if temperature else tensor(name, meta.shape)
        model.load_state_dict({name: made}, strict=False, assign=True)
    return model.eval()


@torch.inference_mode()
def test_vision_embedding_and_taps(imagebind: ImageBind, expected: dict[str, torch.Tensor]) -> None:
    features = imagebind.encode_image(expected["images"])
    differences = {"embedding": difference(features.embedding, expected["vision_embed"])}
    assert imagebind.spec.taps == (7, 15, 23, 31)
    for number, tap in enumerate(features.taps):
        differences[f"tap {number}"] = difference(tap[:, ::16, ::40], expected[f"taps_{number}"])
    assert max(differences.values()) < TOLERANCE, differences


@torch.inference_mode()
def test_text_tokens_and_embedding(imagebind: ImageBind, expected: dict[str, torch.Tensor]) -> None:
    assert torch.equal(tokenize(SENTENCES), expected["text_tokens"].long())
    assert difference(imagebind.encode_text(SENTENCES), expected["text_embed"]) < TOLERANCE
