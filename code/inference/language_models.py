"""Language models that answer about a photo, one interface for all: an answer as text that grows."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import torch

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings import Findings
from anomalygpt.datasets.findings_dialogue import clean_question, with_findings
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import answer_text, chat_prompt, conversation_ids, layout_of
from anomalygpt.model.generation import ConversationCache, growing_text, stream_tokens, turn_tokens

History = Sequence[tuple[str, str]]  # earlier (question, answer) pairs about a photo


class LanguageModel(Protocol):
    """Anything that answers questions about a photo."""

    def texts(
        self, image: ImageResult, findings: Findings | None, question: str, history: History, opening: str = ""
    ) -> Iterator[str]:
        """Yields the answer so far, after each piece; each text begins with the one before.

        Args:
            findings: what the answer may state; None where the model reads only image, map and question.
            opening: the answer's first words, from which it goes on.

        Raises:
            UserError: the model can't be reached.
        """
        ...


class PromptedModel:
    """AnomalyGPT's own language model: it reads the image's embedding and the learned prompts of the map.

    The keys and values of the latest photo's conversation are kept: a follow-up question computes only what is new.

    Args:
        model: with a language model; trained to answer from findings where it is given any (training stage 3).
        settings: how answers are sampled.
    """

    def __init__(self, model: AnomalyGPT, settings: GenerationSettings) -> None:
        self.model = model
        self.settings = settings
        self._image: ImageResult | None = None  # that the cache belongs to
        self._cache = ConversationCache()

    def texts(
        self, image: ImageResult, findings: Findings | None, question: str, history: History, opening: str = ""
    ) -> Iterator[str]:
        """See :class:`LanguageModel`."""
        tokenizer = self.model.tokenizer
        begun = tokenizer.encode(opening) if opening else []
        ids = self._ids(findings, question, history) + begun
        cache = self._cache if self._image is image else ConversationCache()
        self._image = None  # taken: another answer about the same photo begins with an empty one meanwhile
        with torch.inference_mode():
            # The keys and values of a conversation that goes on hold it already.
            prefix = None if cache.past else self.model.prompt_embeds(image.features, image.prompt_map)
        tokens = stream_tokens(self.model.llama_model, prefix, ids, cache, self.settings)
        try:
            yield from growing_text(turn_tokens(tokens, tokenizer), begun, partial(answer_text, tokenizer=tokenizer))
        finally:
            self._image, self._cache = image, cache

    def _ids(self, findings: Findings | None, question: str, history: History) -> list[int]:
        """Findings, earlier turns and the question, encoded as the model was trained."""
        tokenizer = self.model.tokenizer
        if findings is None:
            return tokenizer.encode(chat_prompt(history, question, layout_of(tokenizer)))
        questions = [clean_question(asked) for asked in (*(earlier for earlier, _ in history), question)]
        questions[0] = with_findings(questions[0], findings)
        turns = [Turn("human", questions[0])]
        for (_, answer), asked in zip(history, questions[1:], strict=True):
            turns += [Turn("assistant", answer), Turn("human", asked)]
        return conversation_ids(turns, tokenizer)[0]
