"""ImageBind's text tower: token ids in, one joint embedding per sentence out (specification 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.model.imagebind.transformer import LAYER_NORM_EPS

CONTEXT_LENGTH = 77
VOCABULARY = 49408
INITIAL_TEMPERATURE = 0.07
MAX_LOGIT_SCALE = 100.0


class TextStem(nn.Module):
    """Token ids -> tokens with their positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.pos_embed = nn.Parameter(torch.empty(1, CONTEXT_LENGTH, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N <= 77) int64 -> (B, N, width)."""
        return self.token_embedding(ids) + self.pos_embed[:, : ids.shape[1]]


class TextHead(nn.Module):
    """The end-of-text token (the largest id of a sentence) -> unnormalised joint embedding."""

    def __init__(self, width: int, joint_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=LAYER_NORM_EPS), nn.Linear(width, joint_width, bias=False))

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """(B, N, width), (B, N) -> (B, joint_width)."""
        ends = ids.argmax(dim=1)
        return self.proj(tokens[torch.arange(len(tokens), device=tokens.device), ends])


class LogitScale(nn.Module):
    """Scales embeddings to the length of a learned, clipped temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / INITIAL_TEMPERATURE)))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return F.normalize(embedding, dim=-1) * self.log_logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
