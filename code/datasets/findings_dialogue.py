"""Conversations about findings drawn at random: the text that teaches the language model to answer from them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import numpy as np

from anomalygpt.datasets.class_info import class_table, spoken_name
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings import (
    LANGUAGES,
    UNKNOWN_CLASS,
    Findings,
    Form,
    Language,
    RegionFinding,
    answer_text,
    finding_phrases,
    findings_text,
)

Split = Literal["train", "held_out"]
HELD_OUT = 3  # every third line of a kind is held out

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
FORMS: tuple[Form, ...] = ("compact", "elongated", "scattered")
NUMBER_SHARES = (0.5, 0.25, 0.1, 0.06, 0.03, 0.02, 0.02, 0.01, 0.01)  # of 1 to 9 regions
MOST_TURNS = 4
LONGEST_QUESTION = 400  # characters
ALTERNATIVE = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"\$([a-z_]+)")


def draw_findings(rng: np.random.Generator) -> Findings:
    """Findings of a photo that does not exist: every combination of verdict, places, sizes, part and references."""
    width, height = (int(rng.integers(160, 4000)) for _ in range(2))
    defective = rng.random() < 0.65
    number = 1 + int(rng.choice(len(NUMBER_SHARES), p=NUMBER_SHARES)) if defective else 0
    regions = [
        RegionFinding(
            place=str(rng.choice(PLACES)),
            box=(0, 0, 1, 1),
            area=float(np.exp(rng.uniform(np.log(3e-4), np.log(0.3 / number)))),
            peak=float(rng.uniform(1, 4)),
            form=FORMS[int(rng.integers(len(FORMS)))],
        )
        for _ in range(number)
    ]
    regions.sort(key=lambda region: -region.area)
    sure = rng.random() < 0.6
    of_verdict = rng.uniform(0.9, 1) if sure else rng.uniform(0.5, 0.9)
    return Findings(
        status="defective" if defective else "good",
        probability=float(of_verdict if defective else 1 - of_verdict),
        regions=tuple(regions),
        class_name=_draw_class(rng),
        references=int(rng.choice([0, 0, 1, 1, 2, 3, 4, 4, 5, 8, 10, 16, 20, 50, 200])),
        image_size=(width, height),
    )


def _draw_class(rng: np.random.Generator) -> str:
    drawn = rng.random()
    if drawn < 0.4:
        return UNKNOWN_CLASS
    if drawn < 0.8:
        return str(rng.choice(_known_classes()))
    words = finding_phrases("en")["words"]["classes"]
    return f"{rng.choice(words)} {rng.choice(['', 'A', 'B', '2', '7', 'x3', 'type 4', 'holder', 'cap'])}".strip()


@cache
def _known_classes() -> list[str]:
    return [name for name in map(spoken_name, class_table()["names"]) if name != UNKNOWN_CLASS]


# -- questions --------------------------------------------------------------------------------------------------------


def kinds(language: Language = "en") -> list[str]:
    """The kinds of questions."""
    return list(finding_phrases(language)["questions"])


def question_lines(kind: str, language: Language, split: Split) -> list[str]:
    """A kind's lines; every third one is held out."""
    lines: list[str] = finding_phrases(language)["questions"][kind]
    return [line for i, line in enumerate(lines) if (i % HELD_OUT == HELD_OUT - 1) == (split == "held_out")]


def draw_question(
    kind: str,
    findings: Findings,
    language: Language,
    rng: np.random.Generator,
    split: Split = "train",
    careless: float = 0.3,
) -> tuple[str, dict[str, str]]:
    """A question of a kind, and what it claims (see :func:`answer_text`).

    Args:
        careless: how often it is written without care: a typing mistake, no capital letters, no question mark.
    """
    phrases = finding_phrases(language)
    words = phrases["words"]
    lines = question_lines(kind, language, split)
    text = expand(lines[int(rng.integers(len(lines)))], phrases["vocabulary"], rng)
    claim: dict[str, str] = {}
    if "<place>" in text:
        truthful = findings.places and rng.random() < 0.5
        place = str(rng.choice(findings.places if truthful else PLACES))
        claim["place"] = place
        text = text.replace("<place>", str(rng.choice(words["spoken_places"][place])))
    if "<type>" in text:
        drawn = str(rng.choice(words["types"]))
        claim["type"] = drawn
        text = text.replace("<type>", drawn)
    if "<number>" in text:
        number = int(rng.integers(2, 6))
        text = text.replace("<number>", str(number) if rng.random() < 0.5 else words["numbers"][number])
    text = text.replace("<class>", str(rng.choice(words["classes"])))
    if kind != "claim_type":  # a kind of defect that is only asked about is not repeated in the answer
        claim.pop("type", None)
    text = str(rng.choice(words["lead"])) + text + str(rng.choice(words["tail"]))
    text = _tidy(text, language)
    return clean_question(_careless(text, language, rng) if rng.random() < careless else text), claim


def expand(line: str, vocabulary: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
    """One wording of a line: ``{a|b}`` takes one alternative, ``$name`` a word of the vocabulary."""
    while True:
        if named := NAME.search(line):
            choices = vocabulary[named[1]]
            line = line[: named.start()] + choices[int(rng.integers(len(choices)))] + line[named.end() :]
        elif found := ALTERNATIVE.search(line):
            options = found[1].split("|")
            line = line[: found.start()] + options[int(rng.integers(len(options)))] + line[found.end() :]
        else:
            return line


def _tidy(text: str, language: Language) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    if language == "zh":
        text = re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)
        return re.sub(r"([。？！?])[呢？?。]+$", r"\1", text)
    text = re.sub(r"([.?!])\s*\?+$", r"\1", text)
    return text[:1].upper() + text[1:]


def _careless(text: str, language: Language, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        text = text.rstrip("?？。.!！ ")
    if language == "en":
        text = text.lower() if rng.random() < 0.6 else text
        for _ in range(int(rng.integers(0, 3))):
            text = _typo(text, rng)
    return text or "?"


def _typo(text: str, rng: np.random.Generator) -> str:
    places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not places:
        return text
    i = int(rng.choice(places))
    swapped = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    dropped = text[:i] + text[i + 1 :]
    doubled = text[:i] + text[i] + text[i:]
    return (swapped, dropped, doubled)[int(rng.integers(3))]


def clean_question(question: str) -> str:
    """A question as the language model reads it: on one line, of bounded length, without its control marks."""
    text = " ".join(re.sub(r"<\|?/?(\w+)\|?>", r"\1", question.replace("###", "#")).split())
    return text[:LONGEST_QUESTION].strip() or "?"


# -- conversations ----------------------------------------------------------------------------------------------------


def draw_conversation(
    findings: Findings, rng: np.random.Generator, split: Split = "train", chinese: float = 0.5
) -> list[Turn]:
    """One to ``MOST_TURNS`` questions about findings, with their true answers.

    The first human turn begins with the findings, as :func:`with_findings` puts them at inference.
    """
    language: Language = "zh" if rng.random() < chinese else "en"
    turns: list[Turn] = []
    for number in range(1 + int(rng.integers(MOST_TURNS))):
        if number and rng.random() < 0.1:
            language = LANGUAGES[1 - LANGUAGES.index(language)]
        kind = str(rng.choice(kinds(language)))
        question, claim = draw_question(kind, findings, language, rng, split)
        text = with_findings(question, findings) if number == 0 else question
        turns += [Turn("human", text), Turn("assistant", answer_text(kind, findings, language, **claim))]
    return turns


def with_findings(question: str, findings: Findings) -> str:
    """A conversation's first question as the language model reads it: the findings, then the question."""
    return f"{findings_text(findings)}\n{question}"
