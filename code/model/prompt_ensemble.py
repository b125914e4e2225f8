"""Text features [normal, abnormal] of a class: WinCLIP's state words and templates (specification 3)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMAL_STATES = ("{}", "flawless {}", "perfect {}", "unblemished {}",
                 "{} without flaw", "{} without defect", "{} without damage")  # fmt: skip
ABNORMAL_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
INITIAL_DISTANCE = 0.1  # between the two learned text features, relative to their length
TEMPLATES = ("a photo of a {}.", "a photo of the {}.")


def sentences(class_name: str, states: Sequence[str]) -> list[str]:
    """Every state of the class in every template; ``_`` in the name becomes a space."""
    name = class_name.replace("_", " ")
    return [template.format(state.format(name)) for state in states for template in TEMPLATES]


class PromptEnsemble:
    """The text features of a class, cached; with ``offload`` the text tower is on the CPU between new classes."""

    def __init__(self, encoder: Any, offload: bool = False) -> None:
        self.encoder, self.offload = encoder, offload
        self._cache: dict[str, Tensor] = {}
        if offload:
            self._device = next(encoder.text_tower.parameters()).device
            encoder.text_tower.to("cpu")

    @torch.no_grad()
    def __call__(self, class_names: Sequence[str]) -> Tensor:
        """B class names -> (B, 2, D) float32 of unit length: [normal, abnormal]."""
        if new := [name for name in dict.fromkeys(class_names) if name not in self._cache]:
            # The cache is used by later calls too, so it must not hold inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                if self.offload:
                    self.encoder.text_tower.to(self._device)
                self._cache |= {name: self._encode(name) for name in new}
                if self.offload:
                    self.encoder.text_tower.to("cpu")
        return torch.stack([self._cache[name] for name in class_names])

    def _encode(self, class_name: str) -> Tensor:
        normal, abnormal = sentences(class_name, NORMAL_STATES), sentences(class_name, ABNORMAL_STATES)
        embedded = self.encoder.encode_text(normal + abnormal).float()
        means = [embedded[: len(normal)].mean(dim=0), embedded[len(normal) :].mean(dim=0)]
        return F.normalize(torch.stack(means), dim=-1)


class LearnedTextFeatures(nn.Module):
    """Text features as two trained vectors, the same for every class, for an encoder without a text tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # They start nearly equal, as real text features are: two unrelated vectors give logits of tens at scale 100,
        # the softmax saturates, and a tap that predicts normal everywhere gets no gradient.
        normal = torch.randn(width)
        self.states = nn.Parameter(torch.stack([normal, normal + INITIAL_DISTANCE * torch.randn(width)]) * width**-0.5)

    def forward(self, class_names: Sequence[str]) -> Tensor:
        """B class names (unused) -> (B, 2, D) of unit length: [normal, abnormal]."""
        return F.normalize(self.states.float(), dim=-1).expand(len(class_names), -1, -1)
