"""Answers that state only what the findings support: findings in the prompt, and a check of every sentence."""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings import Findings, answer_text
from anomalygpt.datasets.findings_dialogue import clean_question, with_findings
from anomalygpt.inference.answer_check import Contradiction, check_answer, language_of
from anomalygpt.inference.predictor import ImageResult
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import answer_text as without_end_mark
from anomalygpt.model.chat import conversation_ids, ends_turn
from anomalygpt.model.generation import ConversationCache, stream_tokens

AnswerSource = Literal["model", "corrected", "findings"]
History = Sequence[tuple[str, str]]

SENTENCE_END = re.compile(r"[。！？]|[.!?](?=\s|$)")
UNFINISHED = ("cut_off", "empty")  # faults that a text has only while more is to come
GARBLED = "\ufffd"  # the first bytes of a character whose others are not generated yet


@dataclass(frozen=True)
class Answer:
    """A checked answer.

    Attributes:
        source: the language ``model``'s own words; ``corrected``: generated again from a forced opening, or cut before
            a contradiction; ``findings``: their own sentence in place of the model's.
        contradictions: of the model's own first answer.
    """

    text: str
    source: AnswerSource
    contradictions: tuple[Contradiction, ...] = ()


class CheckedAnswers:
    """Answers about one photo at a time; earlier turns' keys and values are kept.

    Args:
        model: with a language model that was trained to answer from findings.
        settings: how answers are sampled.
    """

    def __init__(self, model: AnomalyGPT, settings: GenerationSettings) -> None:
        self.model = model
        self.settings = settings
        self._image: ImageResult | None = None  # that the cache belongs to
        self._cache = ConversationCache()

    def stream(
        self, image: ImageResult, findings: Findings, question: str, history: History = ()
    ) -> Generator[str, None, Answer]:
        """Yields an answer piece by piece: a sentence is released when it does not contradict the findings.

        Args:
            history: earlier (question, answer) pairs about the photo.

        Returns:
            The whole answer; its text is what was yielded.
        """
        first = yield from self._checked(image, findings, question, history, "")
        if not first.contradictions or first.text:
            return first
        language = language_of(question)
        opening = re.sub(r"[.。]$", "", answer_text("verdict", findings, language))
        second = yield from self._checked(image, findings, question, history, opening)
        if not second.contradictions or second.text:
            return Answer(second.text, "corrected", first.contradictions)
        sentence = answer_text("describe", findings, language)
        yield sentence
        return Answer(sentence, "findings", first.contradictions)

    def _checked(
        self, image: ImageResult, findings: Findings, question: str, history: History, opening: str
    ) -> Generator[str, None, Answer]:
        """One try: yields sentences as long as they are supported; the text is empty where not even the first is."""
        released, text = "", ""
        for text in self._texts(image, findings, question, history, opening):
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            if not ends or ends[-1] <= len(released):
                continue
            faults = self._faults(text[: ends[-1]], question, findings, final=False)
            if faults:
                return Answer(released, "corrected", faults)
            yield text[len(released) : ends[-1]]
            released = text[: ends[-1]]
        faults = self._faults(text, question, findings, final=True)
        if faults:
            return Answer(released, "corrected", faults)
        if text != released:
            yield text[len(released) :]
        return Answer(text, "model")

    @staticmethod
    def _faults(text: str, question: str, findings: Findings, final: bool) -> tuple[Contradiction, ...]:
        faults = check_answer(text, question, findings)
        return faults if final else tuple(fault for fault in faults if fault.kind not in UNFINISHED)

    def _texts(
        self, image: ImageResult, findings: Findings, question: str, history: History, opening: str
    ) -> Iterator[str]:
        """The answer so far, after each token that completes a character."""
        tokenizer = self.model.tokenizer
        questions = [clean_question(asked) for asked, _ in history] + [clean_question(question)]
        questions[0] = with_findings(questions[0], findings)
        turns = [Turn("human", questions[0])]
        for (_, said), asked in zip(history, questions[1:], strict=True):
            turns += [Turn("assistant", said), Turn("human", asked)]
        begun = tokenizer.encode(opening) if opening else []
        ids = conversation_ids(turns, tokenizer)[0] + begun
        if self._image is not image:
            self._image, self._cache = image, ConversationCache()
        prefix = self.model.prompt_embeds(image.features, image.prompt_map)
        new: list[int] = []
        for token in stream_tokens(self.model.llama_model, prefix, ids, self._cache, self.settings):
            if token == tokenizer.eos_id:
                return
            new.append(token)
            text = without_end_mark([*begun, *new], tokenizer)
            if GARBLED not in text[-2:]:
                yield text
            if ends_turn(new, tokenizer):
                return
