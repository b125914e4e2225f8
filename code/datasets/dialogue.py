"""Questions and answers about a photo, written from its class and its mask (paper section 3.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from anomalygpt.datasets.class_info import (
    ClassInfo,
    class_table,
    describe,
    noun_phrase,
    parts_shown,
    phrase_table,
    spoken_name,
    with_article,
)

FOLLOW_UP_KINDS = ("where", "count", "size", "what", "usable")
KIND = "kind"  # only where the defect's kind is known
PARTS = "parts"  # only where the number of parts in a photo is known
CLASS_FREE_PROBABILITY = 0.15
DESCRIPTION_SHARE = 0.7
FOLLOW_UP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Turn:
    """One utterance of a conversation."""

    role: Literal["human", "assistant"]
    text: str


@dataclass(frozen=True)
class Wording:
    """Writes the conversations of a data set.

    Attributes:
        follow_up: adds up to two turns after the verdict.
        languages: en or zh; one is drawn for each photo, a language named twice twice as often.
        description_share: how often a question that names the class also describes a good part.
        infos: what a user says about classes, by class name.
    """

    follow_up: bool = True
    languages: tuple[str, ...] = ("en",)
    description_share: float = DESCRIPTION_SHARE
    infos: Mapping[str, ClassInfo] = field(default_factory=dict)

    def conversation(
        self, class_name: str, positions: Sequence[str], area: float, defect: str | None, rng: np.random.Generator
    ) -> tuple[Turn, ...]:
        """A detection turn and up to two follow-up turns about one photo.

        Args:
            positions: one name per defect, none for a normal photo.
            area: fraction of the photo that is marked, 0..1.
            defect: the defect's name in the data set, empty for a normal photo. None where it is unknown: then no
                question asks for the kind of defect.
        """
        # A single language draws no number.
        number = int(rng.integers(len(self.languages))) if len(self.languages) > 1 else 0
        language, info = self.languages[number], self.infos.get(class_name)
        named = None if rng.random() < CLASS_FREE_PROBABILITY else class_name
        question = detection_question(named, rng, bool(rng.random() < self.description_share), language, info)
        texts = [question, detection_answer(bool(positions), positions, language)]
        sentence = defect and defect_sentence(class_name, defect, language)
        for kind in _draw_kinds(class_name, sentence, rng) if self.follow_up else ():
            questions = phrase_table(language)["follow_up"][kind]["questions"]
            texts.append(questions[int(rng.integers(len(questions)))])
            texts.append(follow_up_answer(kind, class_name, positions, area, language, info, sentence or ""))
        return tuple(Turn("assistant" if at % 2 else "human", text) for at, text in enumerate(texts))


def _draw_kinds(class_name: str, sentence: str | None, rng: np.random.Generator) -> list[str]:
    """No, one or two different kinds of follow-up question among those that have an answer."""
    kinds = list(FOLLOW_UP_KINDS)
    if parts_shown(class_name) is not None:
        kinds.append(PARTS)
    if sentence is not None:
        kinds.append(KIND)
    count = int(rng.random() < FOLLOW_UP_PROBABILITY) and 1 + int(rng.random() < FOLLOW_UP_PROBABILITY)
    return [kinds[int(number)] for number in rng.permutation(len(kinds))[:count]]


def detection_question(
    class_name: str | None,
    rng: np.random.Generator | None = None,
    with_description: bool = True,
    language: str = "en",
    info: ClassInfo | None = None,
) -> str:
    """The question of a detection turn; yes always means anomalous.

    Args:
        class_name: None asks without naming the class.
        rng: draws one of several wordings; None takes the paper's: ``This is a photo of a bottle for anomaly
            detection, which should be …. Is there any anomaly in the image?``
        with_description: whether it says what a good part looks like.
        info: words for the class in place of the phrases' own.
    """
    phrases = phrase_table(language)
    questions = phrases["detection" if class_name is not None else "class_free"]
    question = questions[0] if rng is None else questions[int(rng.integers(len(questions)))]
    if class_name is None:
        return question
    opening = phrases["opening"].format(noun_phrase=noun_phrase(class_name, language, info))
    if with_description:
        opening += phrases["description_joint"].format(description=describe(class_name, language, info))
    return opening + phrases["opening_end"] + question


def detection_answer(is_anomalous: bool, positions: Sequence[str] = (), language: str = "en") -> str:
    """The answer to a detection question; ``positions`` has one name per defect, which may repeat."""
    answers = phrase_table(language)["answers"]
    if not is_anomalous:
        return answers["normal"]
    return _with_positions(answers, positions, language) if positions else answers["unplaced"]


def _with_positions(forms: dict[str, Any], positions: Sequence[str], language: str) -> str:
    """A sentence about one or several positions; a position that repeats is named once, but counts."""
    phrases = phrase_table(language)
    names = [phrases["positions"][position] for position in dict.fromkeys(positions)]
    if len(positions) == 1:
        return forms["one"].format(positions=names[0])
    names = [phrases["answers"]["position"].format(name=name) for name in names]
    listed = phrases["separator"].join(names[:-1])
    joined = listed + phrases["last_separator"] + names[-1] if listed else names[-1]
    return forms["several"].format(count=len(positions), positions=joined)


def follow_up_answer(
    kind: str,
    class_name: str,
    positions: Sequence[str],
    area: float,
    language: str = "en",
    info: ClassInfo | None = None,
    sentence: str = "",
) -> str:
    """The answer to a follow-up question.

    Args:
        kind: ``where``, ``count``, ``size``, ``what``, ``usable``, ``parts`` or ``kind``.
        positions: one name per defect, none for a normal photo.
        area: fraction of the photo that is marked, 0..1.
        info: words for the class in place of the phrases' own.
        sentence: the answer to ``kind``, as :func:`defect_sentence` gives it.
    """
    phrases = phrase_table(language)
    forms = phrases["follow_up"][kind]
    if kind == "where" and positions:
        return _with_positions(forms, positions, language)
    count = parts_shown(class_name) if kind == PARTS else len(positions)
    none = "surface" if kind == PARTS else "normal"
    percent = 100 * area
    share = phrases["share"].format(percent=f"{percent:.1f}" if percent < 10 else f"{percent:.0f}")
    return forms[none if count == 0 else "one" if count == 1 else "several"].format(
        count=count,
        share=phrases["small_share"] if percent < 0.1 else share,
        noun_phrase=noun_phrase(class_name, language, info),
        defect=sentence,
    )


def defect_sentence(class_name: str, defect: str, language: str = "en") -> str | None:
    """What kind of defect a name means: ``scratch_head`` -> ``The head of the screw is scratched.``

    Args:
        defect: a data set's own name; several kinds are separated by commas and give a sentence each.

    Returns:
        None for names that say no more than ``defect``.
    """
    forms = phrase_table(language)["defects"]
    known = forms["any_class"] | forms["classes"].get(spoken_name(class_name).lower(), {})
    sentences = []
    for part in defect.split(","):
        name = " ".join(part.replace("_", " ").lower().split())
        if name in known:
            sentences.append(known[name])
        elif name and name not in class_table()["unnamed_defects"]:
            plural = name.endswith("s") and not name.endswith("ss")
            sentences.append(forms["rule"].format(name=name, noun_phrase=name if plural else with_article(name)))
    return forms["joint"].join(dict.fromkeys(sentences)) or None
