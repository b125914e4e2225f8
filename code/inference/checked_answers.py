"""Answers that state only what the findings support: every sentence is checked before it is shown."""

import logging
import re
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache

from anomalygpt.datasets.findings import answer_text
from anomalygpt.errors import UserError
from anomalygpt.inference.answer_check import Contradiction, check_answer, language_of
from anomalygpt.inference.language_models import History, LanguageModel
from anomalygpt.inference.results import AnswerSource, ImageResult

logger = logging.getLogger(__name__)

SENTENCE_END = re.compile(r"[。！？]|[.!?](?=\s|$)")
UNFINISHED = ("cut_off", "empty")  # faults that a text has only while more is to come


@dataclass(frozen=True)
class Answer:
    """A checked answer.

    Attributes:
        source: the language ``model``'s own words; ``corrected``: generated again from a forced opening, or cut before
            a contradiction or where the model failed; ``findings``: their own sentence in place of the model's.
        contradictions: of the model's own first answer.
    """

    text: str
    source: AnswerSource
    contradictions: tuple[Contradiction, ...] = ()


def stream_checked(
    model: LanguageModel, image: ImageResult, question: str, history: History = ()
) -> Generator[str, None, Answer]:
    """Yields an answer piece by piece: a sentence is released when it does not contradict the photo's findings.

    Args:
        history: earlier (question, answer) pairs about the photo.

    Returns:
        The whole answer; its text is what was yielded.
    """
    language = language_of(question)
    contradictions: tuple[Contradiction, ...] = ()
    try:
        first = yield from _stream_once(model, image, question, history)
        if not first.contradictions or first.text:
            return first
        contradictions = first.contradictions
        opening = re.sub(r"[.。]$", "", answer_text("verdict", image.findings, language))
        second = yield from _stream_once(model, image, question, history, opening)
        if not second.contradictions or second.text:
            return Answer(second.text, "corrected", contradictions)
    except UserError as error:
        _warn_once(str(error))
    sentence = answer_text("describe", image.findings, language)
    yield sentence
    return Answer(sentence, "findings", contradictions)


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s: answers come from the findings instead", message)


def _stream_once(
    model: LanguageModel, image: ImageResult, question: str, history: History, opening: str = ""
) -> Generator[str, None, Answer]:
    """One try: yields sentences as long as they are supported; the text is empty where not even the first is."""
    released, text = "", ""
    try:
        for text in model.texts(image, image.findings, question, history, opening):
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            if not ends or ends[-1] <= len(released):
                continue
            faults = check_answer(text[: ends[-1]], question, image.findings)
            if faults := tuple(fault for fault in faults if fault.kind not in UNFINISHED):
                return Answer(released, "corrected", faults)
            yield text[len(released) : ends[-1]]
            released = text[: ends[-1]]
    except UserError as error:
        if not released:
            raise
        _warn_once(str(error))
        return Answer(released, "corrected")
    if faults := check_answer(text, question, image.findings):
        return Answer(released, "corrected", faults)
    if text != released:
        yield text[len(released) :]
    return Answer(text, "model")
