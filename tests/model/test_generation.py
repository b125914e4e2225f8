"""Streamed tokens equal generate's, and a kept cache changes nothing but the work."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.model.generation import ConversationCache, sample, stream_tokens

GREEDY = GenerationSettings(max_new_tokens=6, temperature=0)


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).eval()


def test_streamed_tokens_are_those_of_generate() -> None:
    llm, prefix, ids = tiny_llama(), torch.randn(1, 3, 32), [5, 6, 7]
    embeds = torch.cat([prefix, llm.get_input_embeddings()(torch.tensor([ids]))], dim=1)
    expected = llm.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False, eos_token_id=None)[0].tolist()
    assert list(stream_tokens(llm, prefix, ids, ConversationCache(), GREEDY)) == expected


def test_second_turn_with_the_kept_cache_equals_one_without() -> None:
    llm, prefix, cache = tiny_llama(), torch.randn(1, 3, 32), ConversationCache()
    first = list(stream_tokens(llm, prefix, [5, 6, 7], cache, GREEDY))
    second_turn = [5, 6, 7, *first[:4], 9, 10]
    kept = list(stream_tokens(llm, prefix, second_turn, cache, GREEDY))
    assert kept == list(stream_tokens(llm, prefix, second_turn, ConversationCache(), GREEDY))


def test_second_turn_computes_only_what_is_new() -> None:
    llm, prefix, cache = tiny_llama(), torch.randn(1, 3, 32), ConversationCache()
    first = list(stream_tokens(llm, prefix, [5, 6, 7], cache, GREEDY))
    lengths: list[int] = []
    llm.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    list(stream_tokens(llm, prefix, [5, 6, 7, *first[:4], 9, 10], cache, GREEDY))
    assert lengths[0] == 2


def test_generation_that_is_stopped_early_leaves_a_cache_to_go_on_from() -> None:
    llm, prefix, cache = tiny_llama(), torch.randn(1, 3, 32), ConversationCache()
    stream = stream_tokens(llm, prefix, [5, 6, 7], cache, GREEDY)
    begun = [next(stream), next(stream)]
    stream.close()
    again = list(stream_tokens(llm, prefix, [5, 6, 7], cache, GREEDY))
    assert again[:2] == begun
    assert again == list(stream_tokens(llm, prefix, [5, 6, 7], ConversationCache(), GREEDY))


def test_sampling_keeps_to_the_nucleus() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])
    assert sample(logits, GenerationSettings(top_p=0.01)) == 1
    drawn = {sample(logits, GenerationSettings(top_p=0.9)) for _ in range(50)}
    assert drawn == {1, 2}
    assert sample(logits, GenerationSettings(temperature=0)) == 1
