"""CLIP's byte-pair encoding, with which ImageBind's text tower was trained (specification 1)."""

from collections.abc import Sequence

from torch import Tensor

CONTEXT_LENGTH = 77


def tokenize(sentences: Sequence[str]) -> Tensor:
    """Sentences -> ids (B, 77) int64: 49406, the text, 49407, then zeros; a long text is cut before the end token."""
    from open_clip import tokenizer  # its wheel contains the vocabulary; late, as not every encoder needs it

    return tokenizer.tokenize(list(sentences), context_length=CONTEXT_LENGTH)
