"""LLaMA's decoder (Touvron et al., 2023) for answers, with LoRA merged: in bfloat16 on a CPU, as CUDA graphs on a GPU.

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

ROOM = 64  # positions by which the cache grows
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

    def __init__(self, store: Tensor) -> None:
        self.length, self.store = 0, store
        self.step: _Step | None = None  # on a GPU, which reads and writes this store

    def crop(self, length: int) -> None:
        """Forgets the last ``-length`` positions, as the caches of transformers do."""
        self.length += length

    def reserve(self, positions: int) -> None:
        """Makes room for so many, and as many again, where there is none."""
        if positions > (room := self.store.shape[-2]):
            more = -(-2 * positions // ROOM) * ROOM - room
            self.store, self.step = F.pad(self.store, (0, 0, 0, more)), None


class MergedLlama(nn.Module):
    """A causal LM with the part of transformers' interface that answering needs; ``dtype`` is of its linear layers.

    LoRA's tensors are loaded by the names that they have in a delta; then :meth:`merge` makes the model ready. On a CPU
    all but the matrix products is in float32, on a GPU all in ``dtype``, as transformers has it. Raises
    :class:`CheckpointError`: weights are missing.
    """

    def __init__(self, folder: Path, lora: LoraSettings, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype, self.device = dtype, device
        between = torch.float32 if device.type == "cpu" else dtype  # of what is between the linear layers
        self.config = config = SimpleNamespace(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        self._tensors = {name: value for file in weight_files(folder) for name, value in read_tensors(file).items()}
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.groups = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_width = getattr(config, "head_dim", None) or width // self.heads
        self.scale = lora.alpha / lora.rank
        self.targets = [LINEAR[target] for target in lora.targets]
        try:
            words = self._tensors["model.embed_tokens.weight"].to(device, between)
            self.embedding = nn.Embedding.from_pretrained(words)
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
        adapters, tensors, between = dict(self.named_parameters()), self._tensors, self.embedding.weight.dtype

        def weight(layer: int, module: str) -> Tensor:
            full = tensors[f"model.layers.{layer}.{module}.weight"].to(self.device)
            if module in self.targets:
                low, high = (adapters[_adapter(layer, module, side)].to(self.device).float() for side in "AB")
                full = full.float() + self.scale * (high @ low)
            return full.to(self.dtype)

        self.layers = []
        for layer in range(self.config.num_hidden_layers):
            norms = [tensors[f"model.layers.{layer}.{norm}.weight"].to(self.device, between) for norm in NORMS]
            self.layers.append((*norms, *(torch.cat([weight(layer, module) for module in each]) for each in JOINED)))
        self.norm = tensors["model.norm.weight"].to(self.device, between)
        tied = getattr(self.config, "tie_word_embeddings", False)
        output = "model.embed_tokens.weight" if tied else "lm_head.weight"
        self.output = tensors[output].to(self.device, self.dtype)
        base = (getattr(self.config, "rope_parameters", None) or vars(self.config)).get("rope_theta", 10000.0)
        exponents = torch.arange(0, self.head_width, 2, device=self.device).double() / self.head_width
        self.speeds = base**-exponents  # of the rotary embedding
        self._tensors = {}
        self._parameters.clear()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def new_cache(self, batch: int = 1) -> Cache:
        words = self.embedding.weight
        return Cache(words.new_zeros(len(self.layers), 2, batch, self.groups, 0, self.head_width))

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
        x, length = inputs_embeds.to(self.embedding.weight.dtype), inputs_embeds.shape[1]
        cache = self.new_cache(len(x)) if cache is None else cache
        start, end = cache.length, cache.length + length
        cache.reserve(end)
        cache.length = end
        if position_ids is None:
            position_ids = torch.arange(start, end, device=x.device).expand(len(x), -1)
        if x.is_cuda and length == 1:
            cache.step = cache.step or _Step(self, x, cache.store)
            return SimpleNamespace(logits=cache.step(x, position_ids, start, attention_mask), cache=cache)
        # The last query sees all positions, each one before it one less.
        seen = torch.ones(length, end, dtype=torch.bool, device=x.device).tril(start) if length > 1 else None
        if attention_mask is not None:  # what is padding sees itself: without any, attention is not a number
            own = torch.eye(end, dtype=torch.bool, device=x.device)[start:]
            mask = attention_mask[:, None, None].bool()
            seen = mask if seen is None else seen & (mask | own)
        logits = self.decode(x, position_ids, slice(start, end), seen, cache.store[..., :end, :], logits_to_keep)
        return SimpleNamespace(logits=logits, cache=cache)

    def decode(
        self, x: Tensor, positions: Tensor, places: slice | Tensor, seen: Tensor | None, store: Tensor, kept: int
    ) -> Tensor:
        """Embeddings (B, N, D_l) -> logits of the last ``kept``; keys and values go to ``places`` in the store."""
        turn = self._rotation(positions, x.dtype)
        for (keys, values), layer in zip(store, self.layers, strict=True):
            first_norm, second_norm, project, out, widen, narrow = layer
            query, key, value = self._heads(_linear(self._normed(x, first_norm), project), turn)
            keys[..., places, :], values[..., places, :] = key, value
            grouped = self.heads != self.groups
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, enable_gqa=grouped)
            x = x + _linear(mixed.transpose(1, 2).flatten(2), out)
            gate, up = _linear(self._normed(x, second_norm), widen).chunk(2, dim=-1)
            x = x + _linear(F.silu(gate) * up, narrow)
        return _linear(self._normed(x[:, -kept:], self.norm), self.output)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def _rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary embedding (Su et al., 2021) of (B, N), each (B, 1, N, head width)."""
        angles = (positions[:, None, :, None].double() * self.speeds).repeat(1, 1, 1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _heads(self, projected: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, all heads' width) -> queries, keys and values (B, heads, N, head width), the first two turned."""
        split = projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        both, value = split.tensor_split([self.heads + self.groups], dim=1)
        first, second = both.chunk(2, dim=-1)
        both = both * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]
        return both[:, : self.heads], both[:, self.heads :], value


class _Step:
    """One further token of each of B rows as a CUDA graph: to start its 700 kernels takes longer than they take."""

    def __init__(self, llama: MergedLlama, x: Tensor, store: Tensor) -> None:
        rows, device = len(x), x.device
        self.x, self.positions = x.clone(), torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.place = torch.zeros(1, dtype=torch.long, device=device)
        # What attention adds: 0 where a position is read.
        self.bias = x.new_full((rows, 1, 1, store.shape[-2]), -torch.inf)
        self.bias[..., :1] = 0
        first = store[..., :1, :].clone()
        inputs = self.x, self.positions, self.place, self.bias, store, 1
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # what a first call sets up can't be captured
            llama.decode(*inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        store[..., :1, :] = first  # the only place that this has written to
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.logits = llama.decode(*inputs)

    def __call__(self, x: Tensor, positions: Tensor, place: int, attention: Tensor | None) -> Tensor:
        """(B, 1, D_l) -> logits (B, 1, vocabulary) after the ``place`` positions before."""
        self.x.copy_(x)
        self.positions.copy_(positions)
        self.place.fill_(place)
        self.bias.fill_(-torch.inf)
        seen = self.bias[..., : place + 1].zero_()
        if attention is not None:
            seen.masked_fill_(attention[:, None, None] == 0, -torch.inf)
        self.graph.replay()
        return self.logits.clone()


def _adapter(layer: int, module: str, side: str) -> str:
    """The name that PEFT gives to one of an adapter's two tensors."""
    return f"base_model.model.model.layers.{layer}.{module}.lora_{side}.default.weight"


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)
