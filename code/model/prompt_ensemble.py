"""Normal and abnormal text features of a class: WinCLIP's states and templates (specification 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.model.encoder import TextImageEncoder

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = ("damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage")
APART = 0.1  # how far the learned states start from each other, as a share of their length
TEMPLATES = ("a photo of a {}.", "a photo of the {}.")


def sentences(class_name: str, states: Sequence[str]) -> list[str]:
    """Every state of the class in every template; ``_`` in the name reads as a space."""
    name = class_name.replace("_", " ")
    return [template.format(state.format(name)) for state in states for template in TEMPLATES]


class PromptEnsemble:
    """T of a class from a text tower; each class is encoded once and kept."""

    def __init__(self, encoder: TextImageEncoder) -> None:
        self.encoder = encoder
        self._cache: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, class_names: Sequence[str]) -> Tensor:
        """B class names -> (B, 2, D) float32 of unit length: [normal, abnormal]."""
        for name in class_names:
            if name not in self._cache:
                self._cache[name] = self._encode(name)
        return torch.stack([self._cache[name] for name in class_names])

    def _encode(self, class_name: str) -> Tensor:
        normal = sentences(class_name, NORMAL_STATES)
        abnormal = sentences(class_name, ABNORMAL_STATES)
        # The cache outlives this call, so that it must not hold tensors that only inference can use.
        with torch.inference_mode(False), torch.no_grad():
            embedded = self.encoder.encode_text(normal + abnormal).float()
        means = [embedded[: len(normal)].mean(dim=0), embedded[len(normal) :].mean(dim=0)]
        return F.normalize(torch.stack(means), dim=-1)


class LearnedTextFeatures(nn.Module):
    """T as two trained vectors, the same for every class: for an encoder that has no text tower."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # They start nearly alike, as the texts' features are: two unrelated vectors give logits of tens at scale 100,
        # the softmax saturates, and a tap that calls everything normal gets no gradient to learn otherwise.
        normal = torch.randn(width)
        self.states = nn.Parameter(torch.stack([normal, normal + APART * torch.randn(width)]) * width**-0.5)

    def forward(self, class_names: Sequence[str]) -> Tensor:
        """B class names (unused) -> (B, 2, D) of unit length: [normal, abnormal]."""
        return F.normalize(self.states.float(), dim=-1).expand(len(class_names), -1, -1)
