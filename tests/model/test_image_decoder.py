"""The image decoder on a single patch, worked out by hand (specification 4)."""

import math

import pytest
import torch

from anomalygpt.model.image_decoder import LOGIT_SCALE, ImageDecoder, anomaly_map, upsample

STATES = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # normal points right, abnormal up


def identity_decoder(taps: int = 1, width: int = 2) -> ImageDecoder:
    decoder = ImageDecoder(width, 2, taps)
    with torch.no_grad():
        for layer in decoder.fc:
            layer.weight.copy_(torch.eye(2, width))
            layer.bias.zero_()
    return decoder


def token_at(angle: float, length: float = 1.0) -> torch.Tensor:
    """One patch token (1, 1, 2) that points at an angle."""
    return length * torch.tensor([[[math.cos(angle), math.sin(angle)]]])


def test_one_patch() -> None:
    angle = math.pi / 4 + 0.01  # a little nearer to abnormal
    abnormal = identity_decoder()([token_at(angle)], STATES, size=1)[0, 0, 1, 0, 0]
    by_hand = 1 / (1 + math.exp(LOGIT_SCALE * (math.cos(angle) - math.sin(angle))))
    assert float(abnormal.detach()) == pytest.approx(by_hand, rel=1e-4)
    assert 0.79 < by_hand < 0.81


def test_length_of_a_token_does_not_count() -> None:
    short, long = (identity_decoder()([token_at(math.pi / 4 - 0.02, length)], STATES, 1) for length in (0.1, 50.0))
    assert torch.allclose(short, long, rtol=1e-4)


def test_bias_shifts_the_token_before_it_is_normalised() -> None:
    decoder = identity_decoder()
    with torch.no_grad():
        decoder.fc[0].bias.copy_(torch.tensor([-1.0, 1.0]))  # (1, 0) becomes (0, 1)
    assert float(decoder([token_at(0.0)], STATES, 1)[0, 0, 1].detach()) == pytest.approx(1.0)


def test_map_is_the_mean_of_the_layers_probabilities() -> None:
    decoder = identity_decoder(taps=2)
    with torch.no_grad():
        layers = decoder([token_at(0.0), token_at(math.pi / 2)], STATES, size=4)
    assert layers.shape == (2, 1, 2, 4, 4)
    assert torch.allclose(anomaly_map(layers), torch.full((1, 1, 4, 4), 0.5))


def test_patches_keep_their_places() -> None:
    """The token of row 0, column 1 lights the top right corner: logits are upsampled before the softmax."""
    tokens = torch.cat([token_at(0.0), token_at(math.pi / 2), token_at(0.0), token_at(0.0)], dim=1)
    with torch.no_grad():
        seen = anomaly_map(identity_decoder()([tokens], STATES, size=3))[0, 0]
    corners = [[float(seen[row, column]) for column in (0, -1)] for row in (0, -1)]
    assert corners[0][1] == pytest.approx(1.0)
    assert max(corners[0][0], *corners[1]) < 1e-6
    # Half way between logits (100, 0) and (0, 100) both states are as likely; a mean of probabilities says 0.5 too, but
    # the centre, with three normal corners of four, tells them apart: softmax of (75, 25), not 0.25.
    assert float(seen[0, 1]) == pytest.approx(0.5, abs=1e-4)
    assert float(seen[1, 1]) < 1e-6


def test_upsampling_aligns_the_corners() -> None:
    coarse = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert torch.allclose(upsample(coarse, 3)[0, 0], torch.tensor([[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_float32_probabilities(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    decoder, taps = ImageDecoder(8, 4, 2), [torch.randn(1, 9, 8) for _ in range(2)]
    states = torch.nn.functional.normalize(torch.randn(1, 2, 4), dim=-1)
    with torch.no_grad():
        full = decoder(taps, states, 6)
        half = decoder([tap.to(dtype) for tap in taps], states, 6)
    assert half.dtype == torch.float32
    assert torch.allclose(half.sum(dim=2), torch.ones(2, 1, 6, 6))
    assert float((half - full).abs().max()) < 0.5  # the inputs were rounded, the arithmetic was not
