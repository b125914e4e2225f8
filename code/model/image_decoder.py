"""The image decoder: patch tokens against text features -> anomaly map (paper section 3.2, eq. 1; specification 4)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LOGIT_SCALE = 100.0
SMALLEST_THRESHOLD = 1e-6  # with a threshold of zero, everything above it is anomalous


class FloatLinear(nn.Linear):
    """A linear layer that computes in float32, whatever its weights' dtype: (…, D_in) -> (…, D_out)."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.float(), self.weight.float(), self.bias.float())


class ImageDecoder(nn.Module):
    """Scores each patch of each tap by its similarity to the text features, after a linear layer for each tap."""

    def __init__(self, tap_width: int, joint_width: int, num_taps: int, *, identity: bool = False) -> None:
        super().__init__()
        self.fc = nn.ModuleList(FloatLinear(tap_width, joint_width) for _ in range(num_taps))
        for layer in self.fc if identity else ():  # taps that are in the joint space already
            nn.init.eye_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, taps: Sequence[Tensor], states: Tensor, size: int) -> Tensor:
        """L taps (B, P * P, D_v), unit text features (B, 2, D) [normal, abnormal] -> (L, B, 2, size, size) float32."""
        layers = []
        for fc, tap in zip(self.fc, taps, strict=True):
            tokens = fc(tap)  # in float32: logits at scale 100 need more than half precision
            logits = (LOGIT_SCALE * F.normalize(tokens, dim=-1)) @ states.float().transpose(1, 2)  # (B, P * P, 2)
            coarse = rearrange(logits, "b (h w) c -> b c h w", h=math.isqrt(logits.shape[1])).contiguous()  # is quicker
            layers.append(upsample(coarse, size).softmax(dim=1))
        return torch.stack(layers)


def upsample(coarse: Tensor, size: int) -> Tensor:
    """(B, C, P, P) -> (B, C, size, size), bilinear with aligned corners."""
    return F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)


def anomaly_map(probabilities: Tensor) -> Tensor:
    """(L, B, 2, S, S) -> (B, 1, S, S) in 0..1: the probability of abnormal, averaged over the layers."""
    return probabilities[:, :, 1:].mean(dim=0)


def calibrate_map(anomaly_map: Any, threshold: float) -> Any:
    """A map, tensor or array, of any shape -> the same in 0..1: 0.5 at the threshold, 1 at twice the threshold.

    Never scaled per image: a value means the same for every photo, part and set of references.
    """
    return (anomaly_map / (2 * max(threshold, SMALLEST_THRESHOLD))).clip(0, 1)
