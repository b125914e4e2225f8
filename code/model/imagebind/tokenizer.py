"""CLIP's byte-pair encoding, as ImageBind's text tower was trained with (specification 1)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from anomalygpt.model.imagebind.text import CONTEXT_LENGTH


@cache
def _tokenizer() -> Any:
    # open_clip carries the vocabulary in its wheel, so that nothing is downloaded; it is imported late because
    # an encoder without a text tower never needs it.
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)


def tokenize(sentences: Sequence[str]) -> Tensor:
    """Sentences -> ids (B, 77) int64: 49406, the text, 49407, then zeros; a long text is cut before the end token."""
    return _tokenizer()(list(sentences))
