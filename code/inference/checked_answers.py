"""Answers that state only what the findings support: every sentence is checked before it is shown."""

import logging
import re
import unicodedata
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache

from anomalygpt.datasets.findings import answer_text
from anomalygpt.errors import UserError
from anomalygpt.inference.answer_check import Contradiction, check_answer, language_of
from anomalygpt.inference.language_models import History, LanguageModel
from anomalygpt.inference.results import AnswerSource, ImageResult

logger = logging.getLogger(__name__)

# Of a text that grows: a full stop after a digit may yet become a decimal point.
SENTENCE_END = re.compile(r"[。！？]|[!?](?=\s|$)|(?<!\d)\.(?=\s|$)|\.(?=\s)")
UNFINISHED = ("cut_off", "empty")  # faults that a text has only while more is to come
# What is contradicted -> the kind of question that the findings' own sentence about it answers.
KIND_OF_SENTENCE: dict[str, str] = {
    "place": "where",
    "number": "count",
    "size": "size",
    "probability": "certainty",
    "form": "appearance",
    "type": "type",
    "class": "content",
    "references": "comparison",
}


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

    A question without words, or in another script than Latin and Chinese, is answered by the findings' own sentence.

    Args:
        history: earlier (question, answer) pairs about the photo.

    Returns:
        The whole answer; its text is what was yielded.
    """
    findings = image.findings
    if not is_readable(question):
        earlier = history[-1][0] if history and not any(map(str.isalpha, question)) else ""
        sentence = answer_text("describe", findings, language_of(earlier))
        yield sentence
        return Answer(sentence, "findings")
    first = yield from _stream_once(model, image, question, history)
    if first.text:
        return first
    language, kind = language_of(question), kind_of_sentence(first.contradictions)
    if first.source != "findings":
        opening = re.sub(r"[.。]$", "", answer_text(kind or "verdict", findings, language))
        second = yield from _stream_once(model, image, question, history, opening)
        if second.text:
            return Answer(second.text, "corrected", first.contradictions)
    sentence = answer_text(kind or "describe", findings, language)
    yield sentence
    return Answer(sentence, "findings", first.contradictions)


def is_readable(question: str) -> bool:
    """Whether a question has letters, most of them Latin ones or Chinese characters."""
    scripts = [unicodedata.name(letter, "").partition(" ")[0] for letter in question if letter.isalpha()]
    return 2 * sum(script in ("LATIN", "CJK", "FULLWIDTH") for script in scripts) >= max(1, len(scripts))


def kind_of_sentence(contradictions: Sequence[Contradiction]) -> str | None:
    """The kind of question whose answer takes the place of what is contradicted; None where the verdict is or none."""
    found = [fault.kind for fault in contradictions]
    return None if "verdict" in found else next(filter(None, map(KIND_OF_SENTENCE.get, found)), None)


def _stream_once(
    model: LanguageModel, image: ImageResult, question: str, history: History, opening: str = ""
) -> Generator[str, None, Answer]:
    """One try: yields sentences as long as they are supported; the text is empty where not even the first is.

    Where the model can't be reached, what was yielded until then is the answer; ``findings`` if that is nothing.
    """
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
        _warn_once(f"{error}; answers are left to the findings")
        return Answer(released, "corrected" if released else "findings")
    if faults := check_answer(text, question, image.findings):
        return Answer(released, "corrected", faults)
    if text != released:
        yield text[len(released) :]
    return Answer(text, "model")


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
