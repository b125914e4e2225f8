"""Generation token by token, with a key-value cache that is kept between the turns of a conversation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.model.chat import ends_turn
from anomalygpt.model.tokenizer import Tokenizer

INCOMPLETE = ("\ufffd", "#")  # the end of a text whose last character or end-of-turn mark is not generated yet


@dataclass
class ConversationCache:
    """What the language model has read of one conversation: a new turn computes only what differs from it."""

    ids: list[int] = field(default_factory=list)  # the text behind the prefix (image and prompts) that is covered
    past: Any = None  # the language model's cache

    def keep(self, ids: Sequence[int]) -> int:
        """Cuts the cache back to what it shares with ``ids`` before the last; returns how many of them it covers."""
        same = [cached == wanted for cached, wanted in zip(self.ids, ids[:-1], strict=False)]
        shared = [*same, False].index(False)
        if surplus := len(self.ids) - shared:
            self.past.crop(-surplus)  # removes so many from the end
        self.ids = list(ids[:shared])
        return shared


@torch.inference_mode()
def stream_tokens(
    llm: Any, prefix: Tensor | None, ids: Sequence[int], cache: ConversationCache, settings: GenerationSettings
) -> Iterator[int]:
    """Yields new token ids one by one, at most ``settings.max_new_tokens``; the caller decides when to stop.

    ``prefix`` (1, N, D_l) precedes the text; it is not read where ``cache``, which is updated, holds it from an earlier
    call. ``ids`` are the text so far, at least one token where there is no prefix.
    """
    embed, pending = llm.get_input_embeddings(), list(ids[cache.keep(ids) :])
    text = embed(torch.tensor([pending], dtype=torch.long, device=embed.weight.device))
    if cache.past is None:
        if not hasattr(llm, "new_cache"):
            from transformers import DynamicCache

            cache.past = DynamicCache()  # the own one of a model with sliding windows could not be cut back
        text = text if prefix is None else torch.cat([prefix.to(text.dtype), text], dim=1)
    for [token], past in decode_batch(llm, text, settings, cache.past):
        cache.past = past
        cache.ids.extend(pending)
        yield token
        pending = [token]


@torch.inference_mode()
def decode_batch(
    llm: Any, embeds: Tensor, settings: GenerationSettings, past: Any = None, attention: Tensor | None = None
) -> Iterator[tuple[list[int], Any]]:
    """Yields the next token id of each of B rows, and the cache, at most ``settings.max_new_tokens`` times.

    ``embeds`` (B, N, D_l) follow what the cache ``past`` holds; they are padded where ``attention`` (B, N) is 0.
    """
    embed, padding = llm.get_input_embeddings(), dict[str, Tensor]()
    model = llm.get_base_model() if hasattr(llm, "get_base_model") else llm
    # transformers 5.24 has renamed its argument and output.
    name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
    for _ in range(settings.max_new_tokens):
        if attention is not None:
            positions = (attention.cumsum(dim=1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
            padding = {"attention_mask": attention, "position_ids": positions}
            attention = F.pad(attention, (0, 1), value=1)
        result = llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **{name: past}, **padding)
        past, logits = getattr(result, name), result.logits[:, -1].float()
        yield (tokens := [sample(row, settings) for row in logits]), past
        embeds = embed(torch.tensor(tokens, device=embed.weight.device)[:, None])


def turn_tokens(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[int]:
    """The tokens up to the end of the turn."""
    new: list[int] = []
    for token in tokens:
        if token == tokenizer.eos_id:
            return
        new.append(token)
        yield token
        if ends_turn(new, tokenizer):
            return


def growing_text(tokens: Iterable[int], begun: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Yields the text of ``begun`` and the tokens so far after each one that completes it, and at last all of it."""
    ids = list(begun)
    for token in tokens:
        ids.append(token)
        text = decode(ids)
        if not text.endswith(INCOMPLETE):
            yield text
    yield decode(ids)


def sample(logits: Tensor, settings: GenerationSettings) -> int:
    """Draws a token from logits (V,) by temperature, top-k and top-p; temperature 0 takes the likeliest."""
    if settings.temperature == 0:
        return int(logits.argmax())
    values, tokens = logits.topk(min(settings.top_k, len(logits)))  # falling
    probabilities = (values / settings.temperature).softmax(dim=0)
    before = probabilities.cumsum(dim=0) - probabilities
    kept = probabilities.masked_fill(before >= settings.top_p, 0)  # the likeliest token always stays
    return int(tokens[torch.multinomial(kept, 1)])
