"""The language model's tokeniser: text in, ids out, nothing added."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from anomalygpt.errors import UserError

SENTENCEPIECE_FILE = "tokenizer.model"


class Tokenizer(Protocol):
    """Encodes a string on its own, as if a space stood before it, without special tokens (specification 6)."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Text -> ids; the empty string has none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out, the leading space of :meth:`encode` taken off."""
        ...


class SentencePieceTokenizer:
    """LLaMA's ``tokenizer.model``.

    Read by the sentencepiece library itself: the weights were trained with its ids, and the fast conversion that
    transformers makes of the same file splits runs of spaces differently.
    """

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: no SentencePiece model; it is damaged or was not fully downloaded") from error
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # Vicuna's 32001st row (its padding token) is unknown to SentencePiece.
        return self._model.decode([int(i) for i in ids if int(i) < self._model.vocab_size()])


class HuggingFaceTokenizer:
    """Any other tokeniser of a Hugging Face folder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        self.bos_id: int = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos_id

    def encode(self, text: str) -> list[int]:
        # The pieces of a prompt are encoded one by one; SentencePiece puts a space before each, and so do we:
        # "### Assistant:" + "Yes" must read "### Assistant: Yes" in training as it does in a chat's history.
        return self._tokenizer.encode(f" {text}", add_special_tokens=False) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.removeprefix(" ")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokeniser of a language model's folder: SentencePiece where ``tokenizer.model`` is there.

    Raises:
        UserError: the folder holds no tokeniser, or a damaged one.
    """
    if (folder / SENTENCEPIECE_FILE).is_file():
        return SentencePieceTokenizer(folder / SENTENCEPIECE_FILE)
    from transformers import AutoTokenizer

    try:
        return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # the tokenizers library raises no narrower one for a damaged file
        raise UserError(
            f"{folder} holds no tokeniser: expected tokenizer.model (LLaMA, Vicuna) or tokenizer.json"
        ) from error
