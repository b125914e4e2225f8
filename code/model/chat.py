"""The words around the picture: turns -> ids and labels, a chat's history, where an answer stops (specification 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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
        if turn.role == "human":
            opening = "" if number == 0 else "Human: "
            piece = tokenizer.encode(opening + turn.text + ASK)
            labels += [IGNORE_INDEX] * len(piece)
        else:
            piece = tokenizer.encode(turn.text + END_OF_TURN)
            labels += piece
        ids += piece
    return ids, labels


def training_batch(conversations: Sequence[Sequence[Turn]], tokenizer: Tokenizer, max_length: int) -> TextBatch:
    """B conversations -> their text part, padded with EOS on the right and cut at ``max_length`` tokens."""
    encoded = [conversation_ids(turns, tokenizer) for turns in conversations]
    length = min(max(len(ids) for ids, _ in encoded), max_length)
    ids = _padded([ids for ids, _ in encoded], length, tokenizer.eos_id)
    labels = _padded([labels for _, labels in encoded], length, IGNORE_INDEX)
    return TextBatch(ids=ids, attention=(ids != tokenizer.eos_id).long(), labels=labels)


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    filled = torch.full((len(rows), length), value, dtype=torch.long)
    for row, values in zip(filled, rows, strict=True):
        kept = torch.tensor(values[:length], dtype=torch.long)
        row[: len(kept)] = kept
    return filled


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
    return ids[-1] == _llama_mark(tokenizer)


def _llama_mark(tokenizer: Tokenizer) -> int | None:
    """The id of ``##`` where the tokeniser splits ``\\n###`` into ``\\n``, ``##``, ``#`` (LLaMA: 2277)."""
    pieces = tokenizer.encode(END_OF_TURN)
    if len(pieces) >= 2 and tokenizer.decode(pieces[-2:-1]) == "##":
        return pieces[-2]
    return None
