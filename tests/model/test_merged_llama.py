"""The decoder for answers computes what transformers and PEFT compute."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from anomalygpt.config.settings import GenerationSettings, LoraSettings
from anomalygpt.model.checkpoint import CheckpointError
from anomalygpt.model.generation import ConversationCache, decode_batch, stream_tokens
from anomalygpt.model.llm import add_lora
from anomalygpt.model.merged_llama import LINEAR, MergedLlama, supported
from tests.helpers import tiny_llama

LORA = LoraSettings(rank=3, alpha=6, dropout=0, targets=tuple(LINEAR))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GREEDY = GenerationSettings(max_new_tokens=6, temperature=0)


def pair(
    folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: object
) -> tuple[nn.Module, MergedLlama]:
    """A tiny LLaMA with adapters that count, by PEFT and by the decoder that reads the same folder."""
    llama: LlamaForCausalLM = tiny_llama(**changes)
    llama.save_pretrained(folder)
    theirs, own = add_lora(llama, LORA).eval(), MergedLlama(folder, LORA, dtype, torch.device(device))
    adapters = {name: torch.randn_like(value) / 5 for name, value in theirs.state_dict().items() if "lora_" in name}
    for model in (theirs, own):
        model.load_state_dict(adapters, strict=False)
    assert adapters.keys() == {name for name in own.state_dict() if "lora_" in name}
    own.merge()
    return theirs.to(device), own


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 2}], ids=str)
def test_logits_are_those_of_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    theirs, own = pair(tmp_path, **changes)
    embeds = torch.randn(2, 9, 32)
    with torch.inference_mode():
        expected = theirs(inputs_embeds=embeds).logits
    assert torch.allclose(own(inputs_embeds=embeds).logits, expected, atol=2e-5)
    assert torch.allclose(own(inputs_embeds=embeds, logits_to_keep=2).logits, expected[:, -2:], atol=2e-5)


def test_cache_continues_where_it_was_cut(tmp_path: Path) -> None:
    _, own = pair(tmp_path, num_key_value_heads=2)
    embeds, cache = torch.randn(1, 400, 32), own.new_cache()
    whole = own(inputs_embeds=embeds).logits
    own(inputs_embeds=embeds[:, :200], cache=cache)
    own(inputs_embeds=torch.randn(1, 30, 32), cache=cache)  # another question, which is taken back
    cache.crop(-30)
    later = own(inputs_embeds=embeds[:, 200:399], cache=cache).logits  # more than was reserved
    last = own(inputs_embeds=embeds[:, 399:], cache=cache).logits
    assert torch.allclose(torch.cat([later, last], dim=1), whole[:, 200:], atol=2e-5)


@torch.inference_mode()
def test_a_step_of_fixed_shapes_is_one_of_growing_shapes(tmp_path: Path) -> None:
    """What a GPU's graph computes: a place and a bias as tensors, and all positions that the cache has room for."""
    _, own = pair(tmp_path, num_key_value_heads=2)
    embeds, cache = torch.randn(2, 9, 32), own.new_cache(2)
    expected = own(inputs_embeds=embeds).logits[:, -1:]
    own(inputs_embeds=embeds[:, :8], cache=cache)
    cache.store[..., 9:, :] = 9.0  # of another answer
    bias = torch.zeros(2, 1, 1, cache.store.shape[-2])
    bias[..., 9:] = -torch.inf
    place = torch.tensor([8])
    got = own.decode(embeds[:, 8:], place.expand(2, 1), place, bias, cache.store, 1)
    assert torch.allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_generates_as_transformers_does(tmp_path: Path, device: str) -> None:
    theirs, own = pair(tmp_path, device=device)
    embeds = torch.randn(1, 7, 32, device=device)
    ids = [[5, 6, 7], [5, 6, 7, 8, 9]]
    cached = ConversationCache()
    for turn in ids:
        streams = [(theirs, ConversationCache()), (own, ConversationCache()), (own, cached)]
        tokens = [[*stream_tokens(llm, embeds, turn, cache, GREEDY)] for llm, cache in streams]
        assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_batch_are_continued_as_if_each_were_alone(tmp_path: Path, device: str) -> None:
    """Rows of 3, 9 and 6 positions are padded on the left, with what must not be read."""
    rows = [torch.randn(1, length, 32, device=device) for length in (3, 9, 6)]
    padded = torch.cat([F.pad(row, (0, 0, 9 - row.shape[1], 0), value=9.0) for row in rows])
    attention = torch.tensor([[number >= 9 - row.shape[1] for number in range(9)] for row in rows]).long()
    attention = attention.to(device)
    for llm in pair(tmp_path, device=device, num_key_value_heads=2):
        alone = [[tokens[0] for tokens, _ in decode_batch(llm, row, GREEDY)] for row in rows]
        together = [tokens for tokens, _ in decode_batch(llm, padded, GREEDY, attention=attention)]
        assert [*map(list, zip(*together, strict=True))] == alone
        assert len({*map(tuple, alone)}) > 1


def test_half_precision_changes_little(tmp_path: Path) -> None:
    theirs, own = pair(tmp_path, dtype=torch.bfloat16)
    embeds: Tensor = torch.randn(1, 9, 32)
    with torch.inference_mode():
        difference = own(inputs_embeds=embeds).logits - theirs(inputs_embeds=embeds).logits
    assert 0 < difference.abs().max() < 0.05


def test_other_architectures_and_broken_folders_are_not_taken(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    assert supported(tmp_path, LORA)
    assert not supported(tmp_path, LoraSettings(targets=("lm_head",)))
    assert not supported(tmp_path / "absent", LORA)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing"):
        MergedLlama(tmp_path, LORA, torch.float32, torch.device("cpu"))
    for change in ({"model_type": "qwen2"}, {"rope_parameters": {"rope_type": "llama3"}}, {"attention_bias": True}):
        path.write_text(json.dumps(config | change))
        assert not supported(tmp_path, LORA), change
