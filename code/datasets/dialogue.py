"""From a class and a mask to questions and answers, and back from an answer to a verdict (section 3.5)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

PHRASES = Path(__file__).with_name("phrases")

ClassRule = Literal["longest_word", "official"]
UNKNOWN_CLASS = "object"
LANGUAGES = ("en", "zh")

ROWS = ("top", "", "bottom")
COLUMNS = ("left", "", "right")
JOINED_GAP = 0.02  # regions nearer than this share of the side are one defect

FOLLOW_UP_KINDS = ("where", "count", "size", "what", "usable")
KIND = "kind"  # only where the defect's kind is known
PARTS = "parts"  # only where it is known how many parts a photo shows
CLASS_FREE_PROBABILITY = 0.15
DESCRIPTION_SHARE = 0.7
FOLLOW_UP_PROBABILITY = 0.5

YES_WORDS = re.compile(r"(?:yes|yeah|yep)(?![a-z])")
NO_WORDS = re.compile(r"(?:no|nope)(?![a-z])")
ZH_QUESTION = re.compile(r"是否|是不是|有没有|有无|能否")
ZH_NO = re.compile(r"没有|没|未|否|无|不是|不存在|不(?=$|[\s，。、！,.!])")
ZH_YES = re.compile(r"是|有|存在|对(?=$|[\s，。、！,.!的])")


@dataclass(frozen=True)
class Turn:
    """One utterance of a conversation."""

    role: Literal["human", "assistant"]
    text: str


@dataclass(frozen=True)
class ClassWords:
    """How one language speaks of a class.

    noun_phrase: with its article, as in `a bottle`. description: a clause that completes "…, which should be".
    """

    noun_phrase: str
    description: str


@cache
def phrase_table(language: str) -> dict[str, Any]:
    """Everything that `phrases/` has for a language."""
    path = PHRASES / f"{language}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in PHRASES.glob("*.yaml") if p.stem != "classes")
        raise ValueError(f"no phrases in language {language!r}; there are: {', '.join(known)}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def _classes() -> dict[str, Any]:
    return yaml.safe_load((PHRASES / "classes.yaml").read_text(encoding="utf-8"))


# Positions


def position_name(place: Sequence[float], size: tuple[int, int]) -> str:
    """The cell of a 3 x 3 grid that a place lies in: `top left`, `top`, … `center`, … `bottom right`.

    place: a box (left, top, right, bottom), whose centre counts, or a centre (x, y); pixels. size: (width,
    height).
    """
    if len(place) not in (2, 4):
        raise ValueError(f"a place is (x, y) or (left, top, right, bottom), not {len(place)} numbers")
    x, y = place if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    column, row = (min(2, max(0, int(3 * at / side))) for at, side in zip((x, y), size, strict=True))
    return " ".join(filter(None, (ROWS[row], COLUMNS[column]))) or "center"


def positions_of(target: NDArray[np.bool_]) -> tuple[str, ...]:
    """The position of each marked region of a mask, largest region first; empty for an empty mask.

    target: (H, W) bool. Regions nearer than 2 % of the side are one. A region's place is the centre of its
    box.
    """
    height, width = target.shape
    reach = 1 + 2 * round(JOINED_GAP * max(height, width) / 2)
    joined = cv2.dilate(target.astype(np.uint8), np.ones((reach, reach), np.uint8))
    count, labels = cv2.connectedComponents(joined)
    regions = [target & (labels == label) for label in range(1, count)]
    regions.sort(key=np.count_nonzero, reverse=True)
    return tuple(position_name(_box_of(region), (width, height)) for region in regions)


def marks_position(target: NDArray[np.bool_], position: str) -> bool:
    """Whether a mask (H, W) marks any pixel, by its centre, in the cell that `position` names."""
    height, width = target.shape
    words = position.split()
    row = next((number for number, word in enumerate(ROWS) if word and word in words), 1)
    column = next((number for number, word in enumerate(COLUMNS) if word and word in words), 1)
    # As in position_name: a pixel at `at` of a side lies in cell int(3 * at / side).
    rows, columns = (
        (3 * (np.arange(side) + 0.5) / side).astype(int) == cell for side, cell in ((height, row), (width, column))
    )
    return bool(target[np.ix_(rows, columns)].any())


def _box_of(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# Class names


def spoken_name(class_name: str) -> str:
    """The class as sentences name it: `metal_nut` -> `metal nut`, `carpet_tiles` -> `carpet`; others keep
    their words.
    """
    name = " ".join(class_name.replace("_", " ").split())
    return _classes()["aliases"].get(name.lower(), name)


def noun_phrase(class_name: str, language: str = "en") -> str:
    """The class with its article: `a bottle`, `an object`, `capsules`; without one in Chinese."""
    name = spoken_name(class_name)
    translated = phrase_table(language).get("class_names")
    if translated is not None:
        return translated.get(name.lower(), name)
    return name if name.lower() in _classes()["plural"] else _with_article(name)


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def describe(class_name: str, language: str = "en") -> str:
    """What a normal part of the class looks like: a clause that completes "…, which should be"; general for
    other classes.
    """
    descriptions = phrase_table(language)["descriptions"]
    return descriptions.get(spoken_name(class_name).lower(), descriptions["general"])


def class_words(class_name: str, language: str = "en") -> ClassWords:
    """The words for a class that the phrases have."""
    return ClassWords(noun_phrase(class_name, language), describe(class_name, language))


def defect_sentence(class_name: str, defect: str, language: str = "en") -> str | None:
    """What kind of defect a name means, as one sentence a kind: `scratch_head` -> `The head of the screw is scratched.`

    defect: a data set's own name, several kinds with commas. None for names that say no more than `defect`.
    """
    forms = phrase_table(language)["defects"]
    own = forms["classes"].get(spoken_name(class_name).lower(), {})
    sentences = []
    for part in defect.split(","):
        name = " ".join(part.replace("_", " ").lower().split())
        if name in own:
            sentences.append(own[name])
        elif name in forms["any_class"]:
            sentences.append(forms["any_class"][name])
        elif name and name not in _classes()["unnamed_defects"]:
            plural = name.endswith("s") and not name.endswith("ss")
            sentences.append(forms["rule"].format(name=name, noun_phrase=name if plural else _with_article(name)))
    return forms["joint"].join(dict.fromkeys(sentences)) or None


def draw_language(languages: str | Sequence[str], rng: np.random.Generator) -> str:
    """One of several languages; a single one costs no draw."""
    choices = (languages,) if isinstance(languages, str) else tuple(languages)
    return choices[0] if len(choices) == 1 else choices[int(rng.integers(len(choices)))]


def class_in_prompt(prompt: str, rule: ClassRule = "longest_word") -> str:
    """The class that a prompt names, with spaces for `_`; `object` when it names none.

    longest_word: the longest known name that occurs as whole words, the first of equals; a plural counts as
    its singular unless it is a class itself. official: the first name of the paper's list that occurs as a
    substring.
    """
    if rule == "official":
        return next((name for name in _classes()["official_order"] if name in prompt), UNKNOWN_CLASS)
    if rule != "longest_word":
        raise ValueError(f"text class rule {rule!r}: expected 'longest_word' or 'official'")
    text = " ".join(re.sub(r"[_\-\s]+", " ", prompt.lower()).split())
    pattern, spoken = _name_pattern()
    found = [match.group(1) for match in pattern.finditer(text)]
    return spoken[max(found, key=len)] if found else UNKNOWN_CLASS


@cache
def _name_pattern() -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern that finds every known form of a class name as whole words, and the class that each form
    means.
    """
    spoken = {name: name for name in _classes()["names"]} | _classes()["aliases"]
    for form, name in list(spoken.items()):
        for variant in _other_numbers(form):
            spoken.setdefault(variant, name)
    longest_first = sorted(spoken, key=len, reverse=True)
    # The look-ahead holds the match, so that names that overlap are all found.
    return re.compile(rf"(?<![a-z0-9])(?=({'|'.join(map(re.escape, longest_first))})(?![a-z0-9]))"), spoken


def _other_numbers(name: str) -> tuple[str, ...]:
    if name.endswith("s"):
        return (name[:-1],)
    return (name + "es",) if name.endswith(("sh", "ch", "x")) else (name + "s",)


# Questions and answers


def detection_question(
    class_name: str | None,
    rng: np.random.Generator | None = None,
    with_description: bool = True,
    language: str = "en",
    *,
    words: ClassWords | None = None,
) -> str:
    """The question of a detection turn; yes always means anomalous.

    class_name: None asks without naming the class. rng: draws one of several wordings; None takes the
    paper's: `This is a photo of a bottle for anomaly detection, which should be …. Is there any anomaly in
    the image?` words: others for the class than the phrases'.
    """
    phrases = phrase_table(language)
    questions = phrases["detection" if class_name is not None else "class_free"]
    question = questions[0] if rng is None else questions[int(rng.integers(len(questions)))]
    if class_name is None:
        return question
    words = words or class_words(class_name, language)
    opening = phrases["opening"].format(noun_phrase=words.noun_phrase)
    if with_description:
        opening += phrases["description_joint"].format(description=words.description)
    return opening + phrases["opening_end"] + question


def detection_answer(is_anomalous: bool, positions: Sequence[str] = (), language: str = "en") -> str:
    """The answer to a detection question. positions: one name a defect, as `position_name` gives them; may
    repeat.
    """
    answers = phrase_table(language)["answers"]
    if not is_anomalous:
        return answers["normal"]
    if not positions:
        return answers["unplaced"]
    return _placed(answers, positions, language)


def _placed(forms: dict[str, Any], positions: Sequence[str], language: str) -> str:
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
    share: float,
    language: str = "en",
    *,
    words: ClassWords | None = None,
    defect: str = "",
) -> str:
    """The answer to a follow-up question of a kind: `where`, `count`, `size`, `what`, `usable`, `parts` or `kind`.

    positions: one name a defect, none for a normal photo. share: of the photo's area that is marked, 0..1. words:
    others for the class than the phrases'. defect: the sentence that answers `kind`.
    """
    phrases = phrase_table(language)
    forms = phrases["follow_up"][kind]
    if kind == "where" and positions:
        return _placed(forms, positions, language)
    if kind == PARTS:
        shown = parts_shown(class_name)
        form = forms["surface"] if shown == 0 else forms["one"] if shown == 1 else forms["several"]
        return form.format(count=shown, noun_phrase=words.noun_phrase if words else noun_phrase(class_name, language))
    number = "normal" if not positions else "one" if len(positions) == 1 else "several"
    return forms[number].format(
        count=len(positions),
        share=_share(share, language),
        noun_phrase=words.noun_phrase if words else noun_phrase(class_name, language),
        defect=defect,
    )


def parts_shown(class_name: str) -> int | None:
    """How many parts a photo of the class shows: 0 for a surface, which has none; None where that varies."""
    return _classes()["parts_shown"].get(spoken_name(class_name).lower(), 1)


def _share(share: float, language: str) -> str:
    phrases = phrase_table(language)
    percent = 100 * share
    if percent < 0.1:
        return phrases["small_share"]
    return phrases["share"].format(percent=f"{percent:.1f}" if percent < 10 else f"{percent:.0f}")


def conversation(
    class_name: str,
    positions: Sequence[str],
    share: float,
    rng: np.random.Generator | None = None,
    follow_up: bool = False,
    language: str = "en",
    description_share: float = DESCRIPTION_SHARE,
    *,
    words: ClassWords | None = None,
    defect: str | None = None,
) -> tuple[Turn, ...]:
    """A detection turn and up to two follow-up turns about one photo.

    positions: one name a defect, none for a normal photo. share: of the photo's area that is marked, 0..1.
    rng: varies the wording, at times without the description or the class; None gives the paper's single turn
    and no follow-up. description_share: how often a question that names the class describes it too. words: others
    for the class than the phrases'. defect: the sentence that says what kind it is (`defect_sentence`), empty for a
    normal photo; None never asks for the kind.
    """
    if rng is None:
        question = detection_question(class_name, language=language, words=words)
    else:
        named = None if rng.random() < CLASS_FREE_PROBABILITY else class_name
        question = detection_question(named, rng, bool(rng.random() < description_share), language, words=words)
    turns = [
        Turn("human", question),
        Turn("assistant", detection_answer(bool(positions), positions, language)),
    ]
    if rng is None or not follow_up:
        return tuple(turns)
    for kind in _draw_kinds(rng, _kinds_known(class_name, defect)):
        questions = phrase_table(language)["follow_up"][kind]["questions"]
        turns.append(Turn("human", questions[int(rng.integers(len(questions)))]))
        said = follow_up_answer(kind, class_name, positions, share, language, words=words, defect=defect or "")
        turns.append(Turn("assistant", said))
    return tuple(turns)


def _kinds_known(class_name: str, defect: str | None) -> tuple[str, ...]:
    counted = () if parts_shown(class_name) is None else (PARTS,)
    return (*FOLLOW_UP_KINDS, *counted, *(() if defect is None else (KIND,)))


def _draw_kinds(rng: np.random.Generator, kinds: Sequence[str]) -> tuple[str, ...]:
    """No, one or two different kinds of follow-up question."""
    count = int(rng.random() < FOLLOW_UP_PROBABILITY) and 1 + int(rng.random() < FOLLOW_UP_PROBABILITY)
    return tuple(kinds[int(kind)] for kind in rng.permutation(len(kinds))[:count])


def parse_verdict(answer: str) -> bool | None:
    """Whether an answer begins with yes (True) or no (False), in English or Chinese; None when it begins with
    neither.

    Whole words count: `None`, `Normal`, `Nothing` and `Not sure` are no answer.
    """
    text = re.sub(r"^[\s\W_]+", "", answer).lower()
    if YES_WORDS.match(text):
        return True
    if NO_WORDS.match(text):
        return False
    if ZH_QUESTION.match(text):
        return None
    if ZH_NO.match(text):
        return False
    return True if ZH_YES.match(text) else None


def parse_positions(answer: str) -> tuple[str, ...]:
    """The positions that an answer names, in English or Chinese, as `position_name` gives them, in their order.

    The longest name wins, so that `top left` is neither `top` nor `left`; English ones count as whole words. A
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
    # Letters may not go on at either end; Chinese is written without spaces.
    return re.compile(rf"(?<![a-z])(?:{'|'.join(map(re.escape, longest_first))})(?![a-z])"), meaning
