"""Questions and answers about a photo, written from its class and its mask (paper section 3.5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.random import Generator

from anomalygpt.datasets.class_info import ClassInfo, describe, noun_phrase, parts_shown, phrase_table, spoken_name
from anomalygpt.datasets.findings import joined

CLASS_FREE_PROBABILITY, FOLLOW_UP_PROBABILITY = 0.15, 0.5


@dataclass(frozen=True)
class Turn:
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
        self, class_name: str, positions: Sequence[str], area: float, defect: str | None, rng: Generator
    ) -> tuple[Turn, ...]:
        """A detection turn and up to two follow-up turns about one photo, of which ``area``, 0..1, is marked.

        ``positions``: a name per defect. ``defect``: its name in the data set, empty for a normal photo; None: no
        question asks for the kind of defect.
        """
        language, info = self.languages[int(rng.integers(len(self.languages)))], self.infos.get(class_name)
        named = None if rng.random() < CLASS_FREE_PROBABILITY else class_name
        question = detection_question(named, rng, bool(rng.random() < self.description_share), language, info)
        texts = [question, self.answer("verdict", positions, language)]
        sentence = defect and defect_sentence(class_name, defect, language)
        left_out = {"verdict": True, "parts": parts_shown(class_name) is None, "kind": sentence is None}
        kinds = [kind for kind in phrase_table(language)["answers"] if not left_out.get(kind)]
        count = int(self.follow_up and rng.random() < FOLLOW_UP_PROBABILITY)  # of follow-up questions
        count += int(count > 0 and rng.random() < FOLLOW_UP_PROBABILITY)
        for kind in [kinds[number] for number in rng.permutation(len(kinds))[:count]] if self.follow_up else ():
            questions = phrase_table(language)["answers"][kind]["questions"]
            texts.append(questions[int(rng.integers(len(questions)))])
            texts.append((kind == "kind" and sentence) or self.answer(kind, positions, language, class_name, area))
        return tuple(Turn("assistant" if at % 2 else "human", text) for at, text in enumerate(texts))

    def answer(
        self, kind: str, positions: Sequence[str] = (), language: str = "en", class_name: str = "", area: float = 0
    ) -> str:
        """The answer to a kind of question of the tables; a position that repeats is named once, but counts."""
        phrases, percent = phrase_table(language), 100 * area
        places = [phrases["position"].format(name=phrases["positions"][each][0]) for each in dict.fromkeys(positions)]
        share = phrases["share"].format(percent=f"{percent:.1f}" if percent < 10 else f"{percent:.0f}")
        slots = {"share": phrases["small_share"] if percent < 0.1 else share, "positions": joined(places, language)}
        slots["noun_phrase"] = noun_phrase(class_name, language, self.infos.get(class_name))
        count = parts_shown(class_name) or 0 if kind == "parts" else len(positions)
        form = phrases["answers"][kind]["none" if count == 0 else "one" if count == 1 else "several"]
        return form.format(count=count, **slots)


def detection_question(
    class_name: str | None,
    rng: Generator | None = None,
    with_description: bool = True,
    language: str = "en",
    info: ClassInfo | None = None,
) -> str:
    """The question of a detection turn; yes always means anomalous. Without a class, it names none.

    ``rng`` draws one of several wordings, None takes the paper's; ``info`` replaces the tables' words for the class.
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


def defect_sentence(class_name: str, defect: str, language: str = "en") -> str | None:
    """``scratch_head`` -> ``The head of the screw is scratched.``, of each kind; None if it means just ``defect``."""
    forms = phrase_table(language)["defects"]
    known = forms["any_class"] | forms["classes"].get(spoken_name(class_name).lower(), {})
    sentences = []
    for part in defect.split(","):
        name = " ".join(part.replace("_", " ").lower().split())
        if name in known:
            sentences.append(known[name])
        elif name and name not in phrase_table("classes")["unnamed_defects"]:
            plural = name.endswith("s") and not name.endswith("ss")
            sentences.append(forms["rule"].format(name=name, noun_phrase=name if plural else noun_phrase(name)))
    return forms["joint"].join(dict.fromkeys(sentences)) or None
