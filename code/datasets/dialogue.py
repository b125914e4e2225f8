"""Questions and answers about a photo, written from its class and its mask (paper section 3.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
from anomalygpt.datasets.findings import joined

FOLLOW_UP_KINDS = ("where", "count", "size", "what", "usable")
CLASS_FREE_PROBABILITY = 0.15
FOLLOW_UP_PROBABILITY = 0.5


@dataclass(frozen=True)
class Turn:
    """One utterance of a conversation."""

    role: Literal["human", "assistant"]
    text: str


@dataclass(frozen=True)
class Wording:
    """Writes the conversations of a data set."""

    follow_up: bool = True  # adds up to two turns after the verdict
    languages: tuple[str, ...] = ("en",)  # one is drawn for each photo, a language named twice twice as often
    description_share: float = 0.7  # how often a question that names the class also describes a good part
    infos: Mapping[str, ClassInfo] = field(default_factory=dict)  # entries of ``dataset.yaml``, by class name

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
        texts = [question, detection_answer(positions, language)]
        sentence = defect and defect_sentence(class_name, defect, language)
        kinds = [*FOLLOW_UP_KINDS, *(["parts"] if parts_shown(class_name) is not None else [])]
        kinds += ["kind"] if sentence is not None else []
        count = 0  # of follow-up questions
        while self.follow_up and count < 2 and rng.random() < FOLLOW_UP_PROBABILITY:
            count += 1
        for kind in [kinds[number] for number in rng.permutation(len(kinds))[:count]] if self.follow_up else ():
            questions = phrase_table(language)["follow_up"][kind]["questions"]
            texts.append(questions[int(rng.integers(len(questions)))])
            texts.append(follow_up_answer(kind, class_name, positions, area, language, info, sentence or ""))
        return tuple(Turn("assistant" if at % 2 else "human", text) for at, text in enumerate(texts))


def detection_question(
    class_name: str | None,
    rng: np.random.Generator | None = None,
    with_description: bool = True,
    language: str = "en",
    info: ClassInfo | None = None,
) -> str:
    """The question of a detection turn; yes always means anomalous.

    Args:
        class_name: None leaves the class out.
        rng: draws one of several wordings; None takes the paper's: ``This is a photo of a bottle for anomaly
            detection, which should be …. Is there any anomaly in the image?``
        with_description: whether it also describes a normal part.
        info: replaces the tables' words for the class.
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


def detection_answer(positions: Sequence[str] = (), language: str = "en") -> str:
    """The answer to a detection question; ``positions`` has one name per defect, which may repeat."""
    return _answer(phrase_table(language)["answers"], len(positions), positions, language)


def follow_up_answer(
    kind: str,
    class_name: str,
    positions: Sequence[str],
    area: float,
    language: str = "en",
    info: ClassInfo | None = None,
    sentence: str = "",
) -> str:
    """The answer to a follow-up question; the arguments are those of :class:`Wording`.

    Args:
        kind: ``where``, ``count``, ``size``, ``what``, ``usable``, ``parts`` or ``kind``.
        sentence: the answer to ``kind``, as :func:`defect_sentence` gives it.
    """
    phrases, percent = phrase_table(language), 100 * area
    share = phrases["share"].format(percent=f"{percent:.1f}" if percent < 10 else f"{percent:.0f}")
    slots = {
        "share": phrases["small_share"] if percent < 0.1 else share,
        "noun_phrase": noun_phrase(class_name, language, info),
        "defect": sentence,
    }
    count = parts_shown(class_name) if kind == "parts" else len(positions)
    return _answer(phrases["follow_up"][kind], count or 0, positions, language, **slots)


def _answer(forms: Mapping[str, str], count: int, positions: Sequence[str], language: str, **slots: str) -> str:
    """The form for so many defects or parts, filled; a position that repeats is named once."""
    phrases = phrase_table(language)
    places = [phrases["position"].format(name=phrases["positions"][each]) for each in dict.fromkeys(positions)]
    form = forms["none" if count == 0 else "one" if count == 1 else "several"]
    return form.format(count=count, positions=joined(places, language), **slots)


def defect_sentence(class_name: str, defect: str, language: str = "en") -> str | None:
    """What kind of defect a data set's name means: ``scratch_head`` -> ``The head of the screw is scratched.``

    Several kinds, separated by commas, give a sentence each. None for names that mean no more than ``defect``.
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
