"""The text around the image: turns -> ids and labels, a chat's history, the end of an answer (specification 6)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anomalygpt.model.losses import IGNORE_INDEX
from anomalygpt.model.tokenizer import Tokenizer

END_OF_TURN = "\n###"
STOP_SUFFIX = "\n##"  # the part of END_OF_TURN that is generated when it stops at LLaMA's token ``##``


@dataclass(frozen=True)
class Layout:
    """The texts around image, questions and answers; by default those of the paper, after Vicuna."""

    before_image: str = "### Human: <Img>"
    after_image: str = "</Img> "
    ask: str = "\n### Assistant:"
    end: str = END_OF_TURN
    opening: str = "Human: "  # before a question that is not the first
    space: str = " "  # between pieces, where the tokeniser puts one before each
    bos: bool = True  # whether BOS stands before ``before_image``, which else holds it
    stops: tuple[int, ...] = ()  # tokens that end an answer, beside EOS


def layout_of(tokenizer: Tokenizer) -> Layout:
    return getattr(tokenizer, "layout", Layout())


class TemplateTokenizer:
    """A tokeniser whose texts follow its chat template. Nothing is put before a piece, and special tokens are read."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizer = tokenizer
        self.eos_id = tokenizer.eos_token_id
        self.bos_id = self.eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        turns = (("user", "\ue000"), ("assistant", "\ue001"), ("user", "\ue002"))  # letters that no template has
        messages = [{"role": role, "content": text} for role, text in turns]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, ask, between, _ = re.split("[\ue000-\ue002]", text)
        marks = [token for token in tokenizer.get_added_vocab() if token.strip() and token in between]
        ends = [between.index(token) + len(token) for token in marks]
        end, opening = (between[: min(ends)], between[min(ends) :]) if ends else (tokenizer.eos_token, between)
        stops = tuple(self.encode(end)[-1:])
        self.layout = Layout(f"{before}<Img>", Layout.after_image, ask, end, opening, space="", bos=False, stops=stops)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        kept = [token for token in ids if token not in self.layout.stops]
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removeprefix(" ")


Turn = Any  # one side's part of a conversation: its ``role``, ``human`` or ``assistant``, and ``text``


def conversation_ids(turns: Sequence[Turn], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """One conversation, human first -> (ids, labels), each turn encoded separately."""
    ids: list[int] = []
    labels: list[int] = []
    layout = layout_of(tokenizer)
    for number, turn in enumerate(turns):
        human = turn.role == "human"
        opening = layout.opening if number and human else ""
        piece = tokenizer.encode(opening + turn.text + (layout.ask if human else layout.end))
        ids += piece
        labels += [IGNORE_INDEX] * len(piece) if human else piece
    return ids, labels


def training_batch(
    conversations: Sequence[Sequence[Turn]], tokenizer: Tokenizer, max_length: int
) -> tuple[Tensor, Tensor]:
    """B conversations, cut at ``max_length`` tokens -> see :func:`text_batch`."""
    encoded = [conversation_ids(turns, tokenizer) for turns in conversations]
    return text_batch([(ids[:max_length], labels[:max_length]) for ids, labels in encoded], tokenizer.eos_id)


def text_batch(rows: Sequence[tuple[Sequence[int], Sequence[int]]], eos: int) -> tuple[Tensor, Tensor]:
    """B pairs of ids and labels -> (B, N) int64 each, padded on the right, where no causal model needs a mask."""
    ids = pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True, padding_value=eos)
    labels = pad_sequence([torch.tensor(labels) for _, labels in rows], batch_first=True, padding_value=IGNORE_INDEX)
    return ids, labels


def chat_prompt(history: Sequence[tuple[str, str]], question: str, layout: Layout = Layout()) -> str:
    """Earlier (question, answer) pairs and the new question as the one string that the model continues."""
    space, opening = layout.space, layout.opening
    earlier = "".join(f"{q}{layout.ask}{space}{a}{layout.end}{space}{opening}" for q, a in history)
    return f"{earlier}{question}{layout.ask}"


def answer_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Generated ids -> the answer, without the end-of-turn mark if there is one."""
    return tokenizer.decode(ids).removesuffix(END_OF_TURN).removesuffix(STOP_SUFFIX).strip()


def ends_turn(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether the newest of the generated ids ends the assistant's turn; EOS always does.

    LLaMA's END_OF_TURN ends in the tokens ``##`` and ``#``; the released rule stops at the first ``##`` (id 2277).
    Any other tokeniser stops when the text itself ends in the mark, with a chat template at that template's token.
    """
    stops = layout_of(tokenizer).stops
    if not ids or stops or ids[-1] == tokenizer.eos_id:
        return bool(ids) and ids[-1] in (tokenizer.eos_id, *stops)
    # Enough tokens to hold the mark whatever the vocabulary; decoding the whole answer each step would be quadratic.
    tail = tokenizer.decode(ids[-len(END_OF_TURN) - 1 :])
    if tail.endswith((END_OF_TURN, STOP_SUFFIX)):
        return True
    mark = tokenizer.encode(END_OF_TURN)[-2:-1]
    return mark == [ids[-1]] and tokenizer.decode(mark) == "##"
