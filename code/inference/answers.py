"""Reads questions and answers: the class a question names, an answer's yes or no and positions, and the verdict.

Also how an answer must begin where the score decides over the language model (``inference.verdict: score``).
"""

import re
from functools import cache
from typing import Literal

from anomalygpt.datasets.class_info import LANGUAGES, class_table, phrase_table
from anomalygpt.model.anomalygpt import UNNAMED_CLASS

ClassRule = Literal["longest_word", "official"]
Verdict = Literal["answer", "score"]  # which one decides where they contradict each other

CHINESE = re.compile(r"[一-鿿]")
YES = re.compile(r"(?:yes|yeah|yep)(?![a-z])")
NO = re.compile(r"(?:no|nope)(?![a-z])")
ZH_QUESTION = re.compile(r"是否|是不是|有没有|有无|能否")
ZH_NO = re.compile(r"没有|没|未|否|无|不是|不存在|不(?=$|[\s，。、！,.!])")
ZH_YES = re.compile(r"是|有|存在|对(?=$|[\s，。、！,.!的])")


# -- the class that a question names ----------------------------------------------------------------------------------


def class_in_prompt(prompt: str, rule: ClassRule = "longest_word") -> str:
    """The class that a prompt names, with spaces for ``_``; ``object`` when it names none.

    Args:
        rule: ``longest_word``: the longest known name that occurs as whole words, the first of equals; a plural counts
            as its singular unless it is a class itself. ``official``: the first name of the paper's list that occurs
            as a substring.
    """
    if rule == "official":
        return next((name for name in class_table()["official_order"] if name in prompt), UNNAMED_CLASS)
    text = " ".join(re.sub(r"[_\-\s]+", " ", prompt.lower()).split())
    pattern, spoken = _class_pattern()
    found = [match.group(1) for match in pattern.finditer(text)]
    return spoken[max(found, key=len)] if found else UNNAMED_CLASS


@cache
def _class_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds every known form of a class name as whole words, and the class that each form means."""
    spoken = {name: name for name in class_table()["names"]} | class_table()["aliases"]
    for form, name in list(spoken.items()):
        other_number = form[:-1] if form.endswith("s") else form + ("es" if form.endswith(("sh", "ch", "x")) else "s")
        spoken.setdefault(other_number, name)
    longest_first = sorted(spoken, key=len, reverse=True)
    # The look-ahead holds the match, so that names that overlap are all found.
    return re.compile(rf"(?<![a-z0-9])(?=({'|'.join(map(re.escape, longest_first))})(?![a-z0-9]))"), spoken


# -- what an answer says ----------------------------------------------------------------------------------------------


def parse_verdict(answer: str) -> bool | None:
    """Whether an answer begins with yes (True) or no (False), in English or Chinese; None for anything else.

    Whole words count: ``None``, ``Normal``, ``Nothing`` and ``Not sure`` are neither.
    """
    text = re.sub(r"^[\s\W_]+", "", answer).lower()
    if YES.match(text):
        return True
    if NO.match(text):
        return False
    if ZH_QUESTION.match(text):
        return None
    if ZH_NO.match(text):
        return False
    return True if ZH_YES.match(text) else None


def parse_positions(answer: str) -> tuple[str, ...]:
    """The positions that an answer names, in English or Chinese, as ``regions.position_name`` gives them, in order.

    The longest name wins, so that ``top left`` is neither ``top`` nor ``left``; English names count as whole words. A
    position that is named twice comes once.
    """
    pattern, meaning = _position_pattern()
    text = re.sub(r"[\s\-_]+", " ", answer.lower())
    return tuple(dict.fromkeys(meaning[match.group()] for match in pattern.finditer(text)))


@cache
def _position_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds every name of a position, and the position that each of them means."""
    meaning: dict[str, str] = {}
    for language in LANGUAGES:
        phrases = phrase_table(language)
        for position, name in phrases["positions"].items():
            meaning |= dict.fromkeys((name, *phrases["position_words"][position]), position)
    longest_first = sorted(meaning, key=len, reverse=True)
    # No letter may precede or follow; Chinese is written without spaces.
    return re.compile(rf"(?<![a-z])(?:{'|'.join(map(re.escape, longest_first))})(?![a-z])"), meaning


def asks_for_anomalies(question: str) -> bool:
    """Whether a question ends in one of the phrases that ask for anomalies: then yes means anomalous."""
    return _normalised(question).endswith(_detection_questions())


def asks_for_soundness(question: str) -> bool:
    """Whether a question ends in a phrase, such as ``is it fine?``, to which yes means normal."""
    text = _normalised(question)
    return any(re.search(f"(?:{phrase_table(language)['soundness']})$", text) for language in LANGUAGES)


def _normalised(question: str) -> str:
    """Lower case, single spaces, no punctuation after the last word."""
    return " ".join(question.split()).lower().rstrip(" ?？.。!！")


@cache
def _detection_questions() -> tuple[str, ...]:
    tables = [phrase_table(language) for language in LANGUAGES]
    return tuple(_normalised(text) for table in tables for text in (*table["detection"], *table["class_free"]))


# -- the verdict ------------------------------------------------------------------------------------------------------


def says_anomalous(question: str, answer: str) -> bool | None:
    """What an answer's yes or no means; None without one. To ``Is it fine?`` yes means normal."""
    said = parse_verdict(answer)
    return not said if said is not None and asks_for_soundness(question) else said


def decide(said: bool | None, by_score: bool, wins: Verdict) -> tuple[bool, Verdict]:
    """Whether the photo is anomalous, and which of the two says so.

    Args:
        said: the answer's verdict; None where it gives none.
        by_score: the calibrated score's verdict.
        wins: which one decides where they contradict each other.
    """
    if said is None or wins == "score":
        return by_score, "score"
    return said, "answer"


def opening(is_anomalous: bool, language: str, place: str | None = None, answers: str = "answers") -> str:
    """The first words of an answer: up to and including the place, or the whole sentence where it names none.

    Args:
        place: of the largest region, as ``regions.position_name`` gives it; None without a region.
        answers: the key of the answers in phrases/*.yaml.
    """
    phrases = phrase_table(language)
    if is_anomalous and place is not None:
        before, _, _ = phrases[answers]["one"].partition("{positions}")
        return str(before + phrases["positions"][place])
    return str(phrases[answers]["unplaced" if is_anomalous else "normal"])


def contradicting_opening(question: str, answer: str, by_score: bool, place: str | None = None) -> str | None:
    """How an answer must begin to agree with the map: with its verdict and, for an anomaly, its place.

    None where the answer already agrees or gives no verdict, and for questions that are not known to ask for anomalies,
    because only to those yes is known to mean anomalous.

    Args:
        by_score: the calibrated score's verdict.
        place: of the largest region; None without a region.
    """
    said = parse_verdict(answer)
    if said is None or not asks_for_anomalies(question):
        return None
    misplaced = by_score and parse_positions(answer)[:1] not in ((), (place,))
    if said == by_score and not misplaced:
        return None
    return opening(by_score, "zh" if CHINESE.search(answer) else "en", place)


def soundness_opening(question: str, is_anomalous: bool, place: str | None = None) -> str | None:
    """How the answer to ``Is it fine?`` must begin; None for any other question.

    A language model that was only trained to be asked for anomalies answers ``No, there is none`` to it, too.
    """
    if not asks_for_soundness(question):
        return None
    return opening(is_anomalous, "zh" if CHINESE.search(question) else "en", place, "soundness_answers")
