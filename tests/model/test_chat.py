"""Turns -> ids, labels and attention; the chat's history; where an answer stops (specification 6)."""

import pytest
import torch

from anomalygpt.model.chat import answer_text, chat_prompt, conversation_ids, ends_turn, training_batch
from anomalygpt.model.losses import IGNORE_INDEX
from anomalygpt.model.tokenizer import SentencePieceTokenizer, Tokenizer
from tests.helpers import Letters, Said
from tests.shared_data import shared

TURNS = [("human", "Is it good?"), ("assistant", "No."), ("human", "Where?"), ("assistant", "At the top.")]
TALK = tuple(Said(role, text) for role, text in TURNS)


@pytest.fixture(scope="module")
def llama() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(shared("parity/llama_tokenizer.model"))


def test_turns_follow_each_other_in_the_released_layout() -> None:
    ids, _ = conversation_ids(TALK, Letters())
    assert Letters().decode(ids) == ("Is it good?\n### Assistant:No.\n###Human: Where?\n### Assistant:At the top.\n###")


def test_labels_are_the_assistants_tokens_with_their_end_mark() -> None:
    ids, labels = conversation_ids(TALK, Letters())
    assert len(ids) == len(labels)
    assert Letters().decode([label for label in labels if label != IGNORE_INDEX]) == "No.\n###At the top.\n###"
    assert all(label in (IGNORE_INDEX, i) for i, label in zip(ids, labels, strict=True))


def test_batch_is_padded_on_the_right_with_eos_and_cut_at_max_length() -> None:
    ids, labels = training_batch([TALK[:2], TALK], Letters(), max_length=500)
    short = len(conversation_ids(TALK[:2], Letters())[0])
    assert ids.shape[1] == len(conversation_ids(TALK, Letters())[0])
    assert ids[0, short:].unique().tolist() == [Letters.eos_id]
    assert labels[0, short:].unique().tolist() == [IGNORE_INDEX]
    cut = training_batch([TALK[:2], TALK], Letters(), max_length=30)
    assert torch.equal(cut[0], ids[:, :30]) and torch.equal(cut[1], labels[:, :30])


def test_history_is_the_same_text_as_the_training_turns(llama: Tokenizer) -> None:
    """One string in a chat, separate turns in training: the tokeniser's spaces make them the same text."""
    assert chat_prompt([], "Is it good?") == "Is it good?\n### Assistant:"
    ids, _ = conversation_ids(TALK[:3], llama)
    assert chat_prompt([("Is it good?", "No.")], "Where?") == llama.decode(ids)
    assert llama.decode(ids) == "Is it good?\n### Assistant: No.\n### Human: Where?\n### Assistant:"


@pytest.mark.parametrize("text", ["Yes, at the top", "Item #3 # of 5 #", "No.", "a\nb", "100 %\n", ""])
def test_answer_that_was_cut_or_ended_by_eos_loses_nothing(llama: Tokenizer, text: str) -> None:
    ids = llama.encode(text)
    assert not any(ends_turn(ids[:n], llama) for n in range(len(ids) + 1))
    assert answer_text(ids, llama) == text.strip()
    assert answer_text([*ids, llama.eos_id], llama) == text.strip()


@pytest.mark.parametrize("mark", ["\n##", "\n###", ""])
@pytest.mark.parametrize("answer", ["Part #3##", "Yes.\n#", "a\n###b"])
def test_exactly_the_mark_at_the_end_is_stripped(mark: str, answer: str) -> None:
    assert answer_text(Letters().encode(answer + mark), Letters()) == answer
