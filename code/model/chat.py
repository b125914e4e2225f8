"""The text around the image: turns -> ids and labels, a chat's history, the end of an answer (specification 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anomalygpt.model.losses import IGNORE_INDEX
from anomalygpt.model.tokenizer import Tokenizer

BEFORE_IMAGE = "### Human: <Img>"
AFTER_IMAGE = "</Img> "
ASK = "\n### Assistant:"
END_OF_TURN = "\n###"
STOP_SUFFIX = "\n##"  # what is left of END_OF_TURN when generation stops at its first recognisable token


class Turn(Protocol):
    """One side's part of a conversation."""

    @property
    def role(self) -> str:
        """``human`` or ``assistant``."""
        ...

    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class TextBatch:
    """The text part of a batch, padded on the right.

    Attributes:
        ids: (B, N) int64.
        attention: (B, N) int64, 1 where a token counts.
        labels: (B, N) int64, -100 except on the assistant's tokens.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor


def conversation_ids(turns: Sequence[Turn], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """One conversation -> (ids, labels), each turn encoded on its own.

    Raises:
        ValueError: the turns do not alternate, human first.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, turn in enumerate(turns):
        expected = ("human", "assistant")[number % 2]
        if turn.role != expected:
            raise ValueError(f"turn {number + 1} of the conversation is {turn.role!r}; expected {expected!r}")
        opening = "Human: " if number and turn.role == "human" else ""
        piece = tokenizer.encode(opening + turn.text + (ASK if turn.role == "human" else END_OF_TURN))
        ids += piece
        labels += [IGNORE_INDEX] * len(piece) if turn.role == "human" else piece
    return ids, labels


def training_batch(conversations: Sequence[Sequence[Turn]], tokenizer: Tokenizer, max_length: int) -> TextBatch:
    """B conversations -> their text part, padded with EOS on the right and cut at ``max_length`` tokens."""
    encoded = [conversation_ids(turns, tokenizer) for turns in conversations]
    cut = [(ids[:max_length], labels[:max_length]) for ids, labels in encoded]
    return text_batch(cut, tokenizer.eos_id)


def text_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], eos: int) -> TextBatch:
    """B pairs of ids and labels -> a batch, padded with EOS on the right."""
    ids = pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True, padding_value=eos)
    labels = pad_sequence([torch.tensor(labels) for _, labels in rows], batch_first=True, padding_value=IGNORE_INDEX)
    return TextBatch(ids=ids, attention=(ids != eos).long(), labels=labels)


def chat_prompt(history: Sequence[tuple[str, str]], question: str) -> str:
    """Earlier (question, answer) pairs and the new question as the one string that the model continues."""
    earlier = "".join(f"{q}{ASK} {a}{END_OF_TURN} Human: " for q, a in history)
    return f"{earlier}{question}{ASK}"


def answer_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Generated ids -> the answer: the end-of-turn mark is taken off where there is one, and nothing else."""
    text = tokenizer.decode(ids)
    for mark in (END_OF_TURN, STOP_SUFFIX):
        text = text.removesuffix(mark)
    return text.strip()


def ends_turn(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the newest of the generated ids ends the assistant's turn.

    LLaMA's END_OF_TURN ends in the tokens ``##`` and ``#``; the released rule stops at the first ``##`` (id 2277).
    Any other tokeniser stops when the text itself ends in the mark.
    """
    if not ids:
        return False
    # Enough tokens to hold the mark whatever the vocabulary; decoding the whole answer each step would be quadratic.
    tail = tokenizer.decode(ids[-len(END_OF_TURN) - 1 :])
    if tail.endswith((END_OF_TURN, STOP_SUFFIX)):
        return True
    mark = tokenizer.encode(END_OF_TURN)[-2:-1]
    return mark == [ids[-1]] and tokenizer.decode(mark) == "##"
