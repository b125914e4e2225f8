"""The language model's tokeniser: text in, ids out, nothing added."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from anomalygpt.errors import UserError

AS_IT_IS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # transformers' classes that add nothing to tokenizer.json


class Tokenizer(Protocol):
    """Encodes each string separately, as if after a space, without special tokens (specification 6)."""

    bos_id: int
    eos_id: int
    size: int  # one more than the largest id

    def encode(self, text: str) -> list[int]:
        """Text -> ids, none for the empty string."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, without special tokens and the leading space of :meth:`encode`."""
        ...


class SentencePieceTokenizer:
    """LLaMA's ``tokenizer.model``.

    Read by the sentencepiece library: the weights were trained with its ids, and transformers' fast tokeniser splits
    runs of spaces differently.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: no SentencePiece model; it is damaged or was not fully downloaded") from error
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        self.size: int = self._model.vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # Vicuna's 32001st token (padding) is not in the SentencePiece vocabulary.
        return self._model.decode([int(i) for i in ids if int(i) < self._model.vocab_size()])


class JsonTokenizer:
    """A ``tokenizer.json`` that transformers would use as it is; read by the tokenizers library, which starts at once.

    A space goes before each piece, as SentencePiece does it: "### Assistant:" + "Yes" is then the same text in training
    as in a chat's history, "### Assistant: Yes".
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as Reader

        self._tokenizer = Reader.from_file(str(folder / "tokenizer.json"))
        self.size = self._tokenizer.get_vocab_size()
        end, begin = (self._tokenizer.token_to_id(config.get(name) or "") for name in ("eos_token", "bos_token"))
        if end is None:
            raise ValueError("tokenizer_config.json names no eos_token of tokenizer.json")
        self.eos_id: int = end
        self.bos_id: int = end if begin is None else begin

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids)).removeprefix(" ")


class HuggingFaceTokenizer:
    """Any other tokeniser in a Hugging Face folder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos_id

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removeprefix(" ")


def load_tokenizer(folder: Path, kind: Callable[[Any], Tokenizer] | None = None) -> Tokenizer:
    """The tokeniser of a language model's folder: SentencePiece if there is a ``tokenizer.model``, or of a ``kind``.

    Raises:
        UserError: the folder has no tokeniser, or a damaged one.
    """
    if kind is None and (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    try:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = isinstance(config.get("eos_token"), str) and isinstance(config.get("bos_token", ""), str | None)
        if kind is None and config.get("tokenizer_class") in AS_IT_IS and named:
            return JsonTokenizer(folder, config)
        from transformers import AutoTokenizer

        return (kind or HuggingFaceTokenizer)(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # the tokenizers library raises no narrower one for a damaged file
        expected = "one with a chat template" if kind else "tokenizer.model (LLaMA, Vicuna) or tokenizer.json"
        raise UserError(f"{folder} holds no tokeniser: expected {expected}") from error
