"""LLaMA's decoder (Touvron et al., 2023) for answers on a CPU: LoRA merged, weights in bfloat16.

It needs neither transformers nor PEFT, whose imports take longer than a short answer (benchmarks/startup.md).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalygpt.config.settings import LoraSettings
from anomalygpt.model.checkpoint import CheckpointError, read_tensors, weight_files

# A layer's linear modules, those side by side that read the same input.
JOINED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
LINEAR = {module.partition(".")[2]: module for modules in JOINED for module in modules}
NORMS = ("input_layernorm", "post_attention_layernorm")
# What a config.json must say, where it says anything: other architectures compute something else.
SUPPORTED = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def supported(folder: Path, lora: LoraSettings) -> bool:
    """Whether a Hugging Face folder holds a model of this architecture, and LoRA adapts its linear layers only."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    plain = all(config.get(key, value) == value for key, value in SUPPORTED.items()) and "model_type" in config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return plain and rope.get("rope_type", "default") == "default" and {*lora.targets} <= {*LINEAR}


def cpu_dtype() -> torch.dtype:
    """bfloat16 where this CPU has instructions for it, else float32."""
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


class Cache:
    """Keys and values (layers, 2, B, heads, positions, head width), of which ``length`` positions are filled."""

    def __init__(self, *sizes: int) -> None:
        self.length, self.store = 0, torch.zeros(*sizes)

    def crop(self, length: int) -> None:
        """Forgets the last ``-length`` positions, as the caches of transformers do."""
        self.length += length


class CpuLlama(nn.Module):
    """A causal LM with the part of transformers' interface that answering needs; ``dtype`` is of its linear layers.

    LoRA's tensors are loaded by the names that they have in a delta; then :meth:`merge` makes the model ready. All but
    the matrix products is in float32. Raises :class:`CheckpointError`: weights are missing.
    """

    def __init__(self, folder: Path, lora: LoraSettings, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.config = config = SimpleNamespace(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        self._tensors = {name: value for file in weight_files(folder) for name, value in read_tensors(file).items()}
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.groups = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_width = getattr(config, "head_dim", None) or width // self.heads
        self.scale = lora.alpha / lora.rank
        self.targets = [LINEAR[target] for target in lora.targets]
        try:
            self.embedding = nn.Embedding.from_pretrained(self._tensors["model.embed_tokens.weight"].float())
            for layer in range(config.num_hidden_layers):
                for module in self.targets:
                    out, inside = self._tensors[f"model.layers.{layer}.{module}.weight"].shape
                    for side, shape in (("A", (lora.rank, inside)), ("B", (out, lora.rank))):
                        # In place of modules that nest as the parts of the name.
                        self._parameters[_adapter(layer, module, side)] = nn.Parameter(torch.zeros(shape), False)
        except KeyError as error:
            raise CheckpointError(f"{folder}: not the expected weights: {error} is missing") from error

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the adapters to the weights, and keeps these in their dtype alone."""
        adapters = dict(self.named_parameters())

        def weight(layer: int, module: str) -> Tensor:
            full = self._tensors[f"model.layers.{layer}.{module}.weight"].float()
            if module not in self.targets:
                return full
            low, high = (adapters[_adapter(layer, module, side)].float() for side in "AB")
            return full + self.scale * (high @ low)

        self.layers = []
        for layer in range(self.config.num_hidden_layers):
            norms = [self._tensors[f"model.layers.{layer}.{norm}.weight"].float() for norm in NORMS]
            linear = [torch.cat([weight(layer, module) for module in modules]).to(self.dtype) for modules in JOINED]
            self.layers.append((*norms, *linear))
        self.norm = self._tensors["model.norm.weight"].float()
        tied = getattr(self.config, "tie_word_embeddings", False)
        self.output = self._tensors["model.embed_tokens.weight" if tied else "lm_head.weight"].to(self.dtype)
        self._tensors = {}
        self._parameters.clear()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def new_cache(self, batch: int = 1) -> Cache:
        return Cache(len(self.layers), 2, batch, self.groups, 0, self.head_width)

    @torch.inference_mode()
    def forward(
        self,
        inputs_embeds: Tensor,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> SimpleNamespace:
        """Embeddings (B, N, D_l), which follow those in the cache -> logits of the last K positions, of all for 0.

        Where ``attention_mask`` (B, cache + N) is 0, nothing is read; ``position_ids`` (B, N) then count the others.
        """
        x, length = inputs_embeds.float(), inputs_embeds.shape[1]
        cache = self.new_cache(len(x)) if cache is None else cache
        start, end = cache.length, cache.length + length
        if end > cache.store.shape[-2]:
            cache.store = F.pad(cache.store, (0, 0, 0, 2 * end - cache.store.shape[-2]))
        turn = self._rotation(torch.arange(start, end)[None] if position_ids is None else position_ids)
        # The last query sees all positions, each one before it one less.
        seen = torch.ones(length, end, dtype=torch.bool).tril(start) if length > 1 else None
        if attention_mask is not None:  # what is padding sees itself: without any, attention is not a number
            mask, own = attention_mask[:, None, None].bool(), torch.eye(end, dtype=torch.bool)[start:]
            seen = mask if seen is None else seen & (mask | own)
        for number, (first_norm, second_norm, project, out, widen, narrow) in enumerate(self.layers):
            query, key, value = self._heads(_linear(self._normed(x, first_norm), project), turn)
            kept = cache.store[number, ..., :end, :]
            kept[0, ..., start:, :], kept[1, ..., start:, :] = key, value
            mixed = F.scaled_dot_product_attention(query, kept[0], kept[1], attn_mask=seen, enable_gqa=True)
            x = x + _linear(mixed.transpose(1, 2).flatten(2), out)
            gate, up = _linear(self._normed(x, second_norm), widen).chunk(2, dim=-1)
            x = x + _linear(F.silu(gate) * up, narrow)
        cache.length = end
        logits = _linear(self._normed(x[:, -logits_to_keep:], self.norm), self.output)
        return SimpleNamespace(logits=logits, cache=cache)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding (Su et al., 2021) of (B, N), each (B, 1, N, head width)."""
        base = (getattr(self.config, "rope_parameters", None) or vars(self.config)).get("rope_theta", 10000.0)
        speeds = base ** -(torch.arange(0, self.head_width, 2).double() / self.head_width)
        angles = (positions[:, None, :, None].double() * speeds).repeat(1, 1, 1, 2)
        return angles.cos().float(), angles.sin().float()

    def _heads(self, projected: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, all heads' width) -> queries, keys and values (B, heads, N, head width), the first two turned."""
        split = projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        both, value = split.tensor_split([self.heads + self.groups], dim=1)
        first, second = both.chunk(2, dim=-1)
        both = both * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]
        return both[:, : self.heads], both[:, self.heads :], value


def _adapter(layer: int, module: str, side: str) -> str:
    """The name that PEFT gives to one of an adapter's two tensors."""
    return f"base_model.model.model.layers.{layer}.{module}.lora_{side}.default.weight"


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight).float()
