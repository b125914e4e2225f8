"""The pre-norm transformer that both ImageBind towers share (Girdhar et al., CVPR 2023)."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
MLP_RATIO = 4


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed q, k, v projection.

    Parameter names are those of ``nn.MultiheadAttention`` because the released file uses them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(packed, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(rearrange(attended, "b heads n d -> b n (heads d)"))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm block: attention, then MLP, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.norm_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width)
        self.norm_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """(B, N, width) -> (B, N, width)."""
        x = x + self.attn(self.norm_1(x), causal)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """A stack of blocks that also returns the raw output of the tapped ones.

    Args:
        width, depth, heads: size of the stack.
        causal: whether a token sees only those before it (text).
        norm_first: whether a LayerNorm stands before the first block (vision).
    """

    def __init__(self, width: int, depth: int, heads: int, *, causal: bool, norm_first: bool) -> None:
        super().__init__()
        self.causal = causal
        norms = [nn.LayerNorm(width, eps=LAYER_NORM_EPS)] if norm_first else []
        self.pre_transformer_layer = nn.Sequential(*norms)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, taps: Collection[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """(B, N, width) -> the last block's output (B, N, width), and that of each tapped block, in block order."""
        x = self.pre_transformer_layer(x)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x, self.causal)
            if index in taps:
                tapped.append(x)
        return x, tapped
