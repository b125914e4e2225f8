"""Parses questions and answers: the class that a question names, an answer's yes or no, and its positions."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from anomalygpt.datasets.class_info import class_table, phrase_table
from anomalygpt.datasets.findings import LANGUAGES
from anomalygpt.model.anomalygpt import UNNAMED_CLASS

Verdict = Literal["answer", "score"]  # which one decides where they contradict

# How an answer begins -> its verdict; the first match counts.
OPENINGS = (
    (re.compile(r"(?:yes|yeah|yep)(?![a-z])"), True),
    (re.compile(r"(?:no|nope)(?![a-z])"), False),
    (re.compile(r"是否|是不是|有没有|有无|能否"), None),  # a question
    (re.compile(r"没有|没|未|否|无|不是|不存在|不(?=$|[\s，。、！,.!])"), False),
    (re.compile(r"是|有|存在|对(?=$|[\s，。、！,.!的])"), True),
)


def class_in_prompt(prompt: str, rule: Literal["longest_word", "official"] = "longest_word") -> str:
    """The class that a prompt names, with spaces for ``_``; ``object`` when it names none.

    ``longest_word``: the longest that occurs as whole words, the first of equals, plurals too. ``official``: the first
    name of the paper's list that occurs as a substring.
    """
    if rule == "official":
        return next((name for name in class_table()["official_order"] if name in prompt), UNNAMED_CLASS)
    text = " ".join(re.sub(r"[_\-\s]+", " ", prompt.lower()).split())
    pattern, class_of = _class_pattern()
    forms = [match.group(1) for match in pattern.finditer(text)]
    return class_of[max(forms, key=len)] if forms else UNNAMED_CLASS


@cache
def _class_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds every known form of a class name as whole words, and the class that each form means."""
    class_of = {name: name for name in class_table()["names"]} | class_table()["aliases"]
    for form, name in list(class_of.items()):
        other_number = form[:-1] if form.endswith("s") else form + ("es" if form.endswith(("sh", "ch", "x")) else "s")
        class_of.setdefault(other_number, name)
    # The look-ahead holds the match, so that names that overlap are all found.
    return re.compile(rf"(?<![a-z0-9])(?=({_longest_first(class_of)})(?![a-z0-9]))"), class_of


def _longest_first(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def parse_verdict(answer: str) -> bool | None:
    """Whether an answer begins with the word yes (True) or no (False); None for any other: ``Not sure``, ``None``."""
    text = re.sub(r"^[\s\W_]+", "", answer).lower()
    return next((verdict for pattern, verdict in OPENINGS if pattern.match(text)), None)


def parse_positions(answer: str) -> tuple[str, ...]:
    """The positions that an answer names, each once, as ``regions.position_name`` gives them; the longest name wins."""
    pattern, meaning = _position_pattern()
    text = re.sub(r"[\s\-_]+", " ", answer.lower())
    return tuple(dict.fromkeys(meaning[match.group()] for match in pattern.finditer(text)))


@cache
def _position_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds every name of a position, and the position that each of them means."""
    named = [pair for language in LANGUAGES for pair in phrase_table(language)["positions"].items()]
    meaning = {name: position for position, names in named for name in names}
    # No letter may precede or follow; Chinese is written without spaces.
    return re.compile(rf"(?<![a-z])(?:{_longest_first(meaning)})(?![a-z])"), meaning


def means_anomalous(question: str, answer: str) -> bool | None:
    """What an answer's yes or no means; None without one. After ``Is it fine?`` yes means normal."""
    text, parsed = " ".join(question.split()).lower().rstrip(" ?？.。!！"), parse_verdict(answer)
    asks_for_soundness = any(re.search(f"(?:{phrase_table(each)['soundness']})$", text) for each in LANGUAGES)
    return not parsed if parsed is not None and asks_for_soundness else parsed
