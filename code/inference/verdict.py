"""Who decides whether a photo is anomalous: the answer's words or the calibrated score; and how words are set right."""

import re
from functools import cache
from typing import Literal

import yaml

from anomalygpt.datasets.dialogue import PHRASES, detection_answer, parse_verdict

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


def contradicting_opening(question: str, answer: str, by_score: bool) -> str | None:
    """How an answer must begin to say what the score says: ``Yes,`` or ``No,`` in its own language.

    None where it already does or says neither, and where the question is none of the known ones about anomalies, to
    which alone yes is known to mean anomalous.
    """
    said = parse_verdict(answer)
    if said is None or said == by_score or not asks_for_anomalies(question):
        return None
    return opening(by_score, "zh" if CHINESE.search(answer) else "en")


@cache
def opening(is_anomalous: bool, language: str) -> str:
    """The first words of a detection answer, up to their comma."""
    whole = detection_answer(is_anomalous, language=language)
    return re.match(r".*?[,，]", whole).group()  # type: ignore[union-attr]


def asks_for_anomalies(question: str) -> bool:
    """Whether it ends in one of the phrases that ask for anomalies, in any language: then yes means anomalous."""
    return " ".join(question.split()).lower().endswith(_detection_questions())


@cache
def _detection_questions() -> tuple[str, ...]:
    asked: list[str] = []
    for path in sorted(PHRASES.glob("*.yaml")):
        phrases = yaml.safe_load(path.read_text(encoding="utf-8"))
        asked += [*phrases.get("detection", ()), *phrases.get("class_free", ())]
    return tuple(question.lower() for question in asked)
