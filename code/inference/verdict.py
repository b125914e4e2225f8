"""Who decides whether a photo is anomalous: the answer's words or the calibrated score; and how words are set right."""

import re
from functools import cache
from typing import Literal

from anomalygpt.datasets.dialogue import LANGUAGES, parse_positions, parse_verdict, phrase_table

Verdict = Literal["answer", "score"]  # who wins where they contradict each other

CHINESE = re.compile(r"[一-鿿]")


def decide(said: bool | None, by_score: bool, wins: Verdict) -> tuple[bool, Verdict]:
    """(whether the photo is anomalous, who says so).

    Args:
        said: what the answer says; None where it is no yes and no no.
        by_score: what the calibrated score says.
    """
    if said is None or wins == "score":
        return by_score, "score"
    return said, "answer"


def says_anomalous(question: str, answer: str) -> bool | None:
    """What an answer's yes or no means: to `Is it fine?` the opposite of what it means to other questions."""
    said = parse_verdict(answer)
    return not said if said is not None and asks_for_soundness(question) else said


def contradicting_opening(question: str, answer: str, by_score: bool, place: str | None = None) -> str | None:
    """How an answer must begin to say what the map says: its verdict, and of an anomaly the place.

    None where the answer already does or says neither, and where the question is none of the known ones about
    anomalies, to which alone yes is known to mean anomalous.

    Args:
        place: of the map's largest region, as ``position_name`` gives it; None where it has none.
    """
    said = parse_verdict(answer)
    if said is None or not asks_for_anomalies(question):
        return None
    misplaced = by_score and parse_positions(answer)[:1] not in ((), (place,))
    if said == by_score and not misplaced:
        return None
    return opening(by_score, "zh" if CHINESE.search(answer) else "en", place)


def opening(is_anomalous: bool, language: str, place: str | None = None, answers: str = "answers") -> str:
    """The words that an answer begins with: up to the place, or all of a sentence that names none.

    Args:
        answers: the phrases' name for the answers, of which ``one`` has a place.
    """
    phrases = phrase_table(language)
    if is_anomalous and place is not None:
        before, _, _ = phrases[answers]["one"].partition("{positions}")
        return str(before + phrases["positions"][place])
    return str(phrases[answers]["unplaced" if is_anomalous else "normal"])


def soundness_opening(question: str, is_anomalous: bool, place: str | None = None) -> str | None:
    """How the answer to a question must begin that asks whether all is well; None for any other question.

    A language model that has only learned to be asked for anomalies says `No, there is none` to it, too.
    """
    if not asks_for_soundness(question):
        return None
    return opening(is_anomalous, "zh" if CHINESE.search(question) else "en", place, "soundness_answers")


def asks_for_anomalies(question: str) -> bool:
    """Whether it ends in one of the phrases that ask for anomalies, in any language: then yes means anomalous."""
    return _plain(question).endswith(_detection_questions())


def asks_for_soundness(question: str) -> bool:
    """Whether it ends in a question, in any language, to which yes means that nothing is wrong."""
    return any(re.search(f"(?:{phrase_table(language)['soundness']})$", _plain(question)) for language in LANGUAGES)


def _plain(question: str) -> str:
    """Lower case, single spaces, and nothing behind the last word."""
    return " ".join(question.split()).lower().rstrip(" ?？.。!！")


@cache
def _detection_questions() -> tuple[str, ...]:
    tables = [phrase_table(language) for language in LANGUAGES]
    return tuple(_plain(asked) for table in tables for asked in (*table["detection"], *table["class_free"]))
