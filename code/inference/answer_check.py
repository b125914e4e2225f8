"""Whether an answer in free wording contradicts what is known about the photo.

Its claims (see ``answer_claims.py``) are compared with the findings. Conventions: `left` is true of a region at the top
left, but not the reverse; `no defect at the left` is true unless a region is exactly there; a size word may be one step
off; the name of a part that only repeats the question's claims nothing while the class is unknown; Markdown emphasis
is ignored; up to three words (six Chinese characters) are a whole answer without a full stop.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from anomalygpt.datasets.class_info import noun_phrase, spoken_name
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, size_word
from anomalygpt.inference.answer_claims import (
    Claim,
    ClaimReader,
    Subject,
    areas_of,
    class_names,
    pattern_of,
    word_table,
)

Kind = Literal[Subject, "language", "repetition", "cut_off", "empty", "markup"]
MARKUP = re.compile(
    r"###|<\|?/?\w+\|?/?>|\[/?INST\]|<<SYS|(?:^|[.!?。！？])\s*(?:human|user|assistant|system)\s*[:：]"
    r"|^(?:findings|检测结论)\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
CHINESE = re.compile(r"[㐀-鿿]")
NEUTRAL_LATIN = {"led", "roi"}  # of three letters and more; shorter ones (OK, NG, AI) are all neutral
LIST_ITEM = re.compile(r"(?:^ *(?:[-•–+|]|\d+[.)]) |\n[^:：\n]{2,20}[:：])[^\n]*$(?!\n)", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’)）」*]*$")


@dataclass(frozen=True)
class Contradiction:
    """One statement of an answer that the findings don't support.

    Attributes:
        kind: what it is about.
        words: the statement, or a part of it.
    """

    kind: Kind
    words: str


def language_of(question: str) -> Language:
    """The language to answer in: Chinese where the question has a Chinese character, else English."""
    return "zh" if CHINESE.search(question) else "en"


def check_answer(answer: str, question: str, findings: Findings) -> tuple[Contradiction, ...]:
    """The statements of an answer that contradict the findings or that nothing in them supports.

    Args:
        answer: by any language model, in English or Chinese.
        question: the one that it answers; yes and no are read by it.

    Returns:
        Empty where nothing contradicts. Faults of form (language, repetition, …) are returned alone.
    """
    answer = re.sub(r"(\W)\1{3,}", r"\1\1\1", re.sub(r"[*`]+|\b_+|_+\b", "", answer)).strip()
    if faults := tuple(_faults_of_form(answer, question, findings)):
        return faults
    reader = ClaimReader(language_of(question), findings, question)
    wrong = [claim for claim in reader.claims_of_answer(answer) if not _is_supported(claim, findings)]
    return tuple(dict.fromkeys(Contradiction(claim.kind, claim.words.strip()) for claim in wrong))


# -- faults of form ---------------------------------------------------------------------------------------------------


def _faults_of_form(text: str, question: str, findings: Findings) -> Iterator[Contradiction]:
    language = language_of(question)
    if not re.search(r"\w", text):
        yield Contradiction("empty", text)
        return
    if found := MARKUP.search(text):
        yield Contradiction("markup", found[0])
    elif words := _foreign_words(text, question, language, findings):
        yield Contradiction("language", words)
    if words := _repeated(text):
        yield Contradiction("repetition", words)
    stops = SENTENCE_END.search(text)
    ends = stops or LIST_ITEM.search(text)
    rest = "" if ends else re.split(r"[.!?。！？;；](?!\d)\s*|\n\s*", text)[-1]
    dangles = pattern_of(language, "dangling").search(re.sub(r"[\s.…]+$", "", text)[-12:])
    items = re.split("[,，、]", rest)
    is_long = any(len(item.split()) > 3 if language == "en" else len(item) > 6 for item in items)
    if is_long or text[-1] in ",，、:：;" or (dangles and (not stops or text.endswith(("...", "…")))):
        yield Contradiction("cut_off", rest or text[-12:])


def _foreign_words(text: str, question: str, language: Language, findings: Findings) -> str:
    """What is not in the language of the question; empty where all is. The name of the part is neutral."""
    for name in (findings.class_name, spoken_name(findings.class_name), noun_phrase(findings.class_name, "zh")):
        text = text.replace(name, "")
    letters = [c for c in text if c.isalpha() and c != "µ" and not CHINESE.match(c) or c == "\ufffd"]
    if strange := [c for c in letters if "LATIN" not in unicodedata.name(c, "")]:
        return "".join(strange)
    if language == "en":
        foreign = re.findall(r"[à-öø-ÿ]|" + pattern_of("en", "foreign").pattern, text.lower())
        return "".join(CHINESE.findall(text)) or " ".join(foreign if len(foreign) > 1 else ())
    known = NEUTRAL_LATIN | {word for name in class_names() for word in name.split()}
    known |= set(re.findall(r"[a-z]+", question.lower()))
    return " ".join(word for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in known)


def _repeated(text: str) -> str:
    """A sentence that comes twice, or words that come three times in a row; else empty."""
    sentences = [s.strip().lower() for s in re.split(r"[.!?。！？\n]+(?!\d)", text) if len(s.strip()) > 3]
    twice = [sentence for sentence in sentences if sentences.count(sentence) > 1]
    words = r"(?<!\w)([a-z]\w{0,30}(?:\W+\w{1,30}){0,9}?)(?:\W+\1){2,}(?!\w)"
    words += r"|([㐀-鿿]{2,12}?)(?:\W?\2){2,}|([㐀-鿿]{5,40})\W?\3|(\w)\4{19,}"
    found = re.search(words, text, re.IGNORECASE)
    return twice[0] if twice else found[0] if found else ""


# -- comparison with the findings -------------------------------------------------------------------------------------


def _is_supported(claim: Claim, findings: Findings) -> bool:
    defective, value, denied = findings.status == "defective", claim.value, claim.denied
    of_scope = {"largest": findings.regions[:1], "smallest": findings.regions[-1:]}
    regions = of_scope.get(claim.scope, findings.regions)
    if claim.kind in ("verdict", "number") and findings.status == "can't tell":
        return claim.kind == "number" and denied
    if claim.kind == "verdict":
        return (value != denied) == defective
    if claim.kind == "place":
        if denied:
            return value not in findings.places
        is_there = [value == region.place or value in region.place.split() for region in regions]
        return all(is_there) and bool(regions) if claim.scope == "every" else any(is_there)
    if claim.kind == "number":
        low, high, places = value
        at_places = {region for region in findings.regions if {region.place, *region.place.split()} & {*places}}
        exactly = [region for region in at_places if region.place in places]
        counts = {findings.number, *filter(None, (len(at_places), len(exactly)))}
        return any(low <= count <= high for count in counts) != denied
    if isinstance(value, tuple) and claim.kind in ("size", "probability"):
        return _is_share(*value) != denied
    if claim.kind == "size" and value:
        sizes = list(word_table("en")["size"])
        actual = [sizes.index(size_word(area)) for area in areas_of(claim.scope, findings)] if regions else []
        size = sizes.index(value)
        return not actual or (size != actual[0] if denied else any(abs(size - other) <= 1 for other in actual))
    if claim.kind == "form":
        forms = {region.form for region in regions}
        return not forms or (forms != {value} if denied else value in forms)
    if claim.kind == "type":
        return findings.status == "good" and denied
    if claim.kind == "class":
        name, repeats = value
        same = findings.knows_class and _is_same_class(name, findings.class_name)
        return same != denied or (repeats and not findings.knows_class)
    if claim.kind == "references":
        return (findings.references > 0 if value is None else findings.references == value) != denied
    return denied


def _is_share(share: float, tolerance: float, compares: str, actual: tuple[float, ...]) -> bool:
    if compares:
        return any(value < share if compares == "less" else value > share for value in actual)
    shown = [*actual, *(min(0.99, max(0.01, value)) for value in actual)]  # as probability_text shows them
    return any(abs(value - share) <= tolerance for value in shown)


def _is_same_class(name: str, class_name: str) -> bool:
    spoken = spoken_name(class_name).lower()
    known = {spoken, spoken.rstrip("0123456789"), noun_phrase(class_name, "zh").lower()}
    for language in LANGUAGES:
        known |= {word for group in word_table(language)["class_groups"] if known & set(group) for word in group}
    # Whole words: `nut` is a `metal nut`, `board` no `keyboard`. Chinese has no spaces.
    named = {f" {name.lower()} ", f" {name.lower().removesuffix('s')} "} if name.isascii() else {name}
    known = {f" {word} " if word.isascii() else word for word in known}
    return any(one in other or other in one for one in named for other in known)
