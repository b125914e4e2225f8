"""CLIP's byte-pair encoding, with which ImageBind's text tower was trained (specification 1)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

CONTEXT_LENGTH = 77


@cache
def _tokenizer() -> Any:
    # open_clip's wheel contains the vocabulary, so nothing is downloaded; imported late because an encoder without a
    # text tower does not need it.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenize(sentences: Sequence[str]) -> Tensor:
    """Sentences -> ids (B, 77) int64: 49406, the text, 49407, then zeros; a long text is cut before the end token."""
    return _tokenizer()(list(sentences))
