"""The language model's tokeniser: text in, ids out, nothing added."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from anomalygpt.errors import reading


class Tokenizer(Protocol):
    """Encodes each string separately, as if after a space, without special tokens (specification 6)."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Text -> ids, none for the empty string."""

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, without special tokens and the leading space of :meth:`encode`."""


class SentencePieceTokenizer:
    """LLaMA's ``tokenizer.model``; transformers' fast tokeniser splits runs of spaces differently."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # Vicuna's 32001st token (padding) is not in the SentencePiece vocabulary.
        return self._model.decode([int(i) for i in ids if int(i) < self._model.vocab_size()])


class JsonTokenizer:
    """A ``tokenizer.json``, read by the tokenizers library. As by SentencePiece, a space goes before each piece."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Reader

        self._tokenizer = Reader.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        marks = (config.get(name) or "" for name in ("eos_token", "bos_token"))
        texts = (mark["content"] if isinstance(mark, dict) else mark for mark in marks)
        end, begin = (self._tokenizer.token_to_id(text) for text in texts)
        if end is None:
            raise ValueError("no token ends a text")
        self.eos_id: int = end
        self.bos_id: int = end if begin is None else begin

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids)).removeprefix(" ")


def load_tokenizer(folder: Path, kind: Callable[[Path], Tokenizer] | None = None) -> Tokenizer:
    """A language model's tokeniser: SentencePiece, JSON, or of a ``kind``. Raises :class:`UserError`: none, damaged."""
    expected = "one with a chat template" if kind else "tokenizer.model (LLaMA, Vicuna) or tokenizer.json"
    with reading(folder, f"a tokeniser: expected {expected}"):
        if kind is None and (folder / "tokenizer.model").is_file():
            return SentencePieceTokenizer(folder / "tokenizer.model")
        return (kind or JsonTokenizer)(folder)
