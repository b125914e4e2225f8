"""Whether an answer in free wording contradicts what is known about the photo, and answers that don't.

The claims of an answer (see ``answer_claims.py``) are compared with the findings. Conventions: `left` is true of a
region at the top left, but not the reverse; `no defect at the left` is true unless a region is exactly there; a size
word may be one step off; the name of a part that only repeats the question's claims nothing while the class is unknown;
Markdown emphasis is ignored; up to three words (six Chinese characters) are a whole answer without a full stop.
"""

import logging
import re
import unicodedata
from collections.abc import Generator, Iterator
from functools import cache
from typing import NamedTuple

from anomalygpt.datasets.class_info import noun_phrase, phrase_table, spoken_name
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, answer_text, language_of, size_word
from anomalygpt.errors import UserError
from anomalygpt.inference.answer_claims import Claim, ClaimReader, areas_of, class_names, pattern_of
from anomalygpt.inference.language_models import History, LanguageModel
from anomalygpt.inference.results import AnswerSource, ImageResult

_warn_once = cache(logging.getLogger(__name__).warning)

MARKUP = re.compile(
    r"(?im)###|<\|?/?\w+\|?/?>|\[/?INST\]|<<SYS|(?:^|[.!?。！？])\s*(?:human|user|assistant|system)\s*[:：]"
    r"|^(?:findings|检测结论)\s*[:：]|^[^\[【\n]*[\]】]"
)
CHINESE = re.compile(r"[㐀-鿿]")
NEUTRAL_LATIN = {"led", "roi"}  # of three letters and more; shorter ones (OK, NG, AI) are all neutral
LIST_ITEM = re.compile(r"(?:^ *(?:[-•–+|]|\d+[.)]) |\n[^:：\n]{2,20}[:：])[^\n]*$(?!\n)", re.MULTILINE)
ANSWER_END = re.compile(r"[.!?。！？…][\"'”’)）」*]*$")
# Of a text that grows: a full stop after a digit may yet become a decimal point.
SENTENCE_END = re.compile(r"[。！？]|[!?](?=\s|$)|(?<!\d)\.(?=\s|$)|\.(?=\s)")
# What is contradicted -> the kind of question that the findings' own sentence about it answers.
KIND_OF_SENTENCE = {"place": "where", "number": "count", "size": "size", "probability": "certainty"}
KIND_OF_SENTENCE |= {"form": "appearance", "type": "type", "class": "content", "references": "comparison"}


class Answer(NamedTuple):
    text: str
    # The language ``model``'s own words; ``corrected``: generated again from a forced opening, or cut before a
    # contradiction or where the model failed; ``findings``: their own sentence in place of the model's.
    source: AnswerSource
    contradictions: tuple[Claim, ...] = ()  # of the model's own first answer


def stream_checked(
    model: LanguageModel, image: ImageResult, question: str, history: History = ()
) -> Generator[str, None, Answer]:
    """Yields an answer by sentences that do not contradict the photo's findings, and returns the whole of it.

    A question without words, or mostly in another script than Latin and Chinese, gets the findings' own sentence. What
    a question asks for and the model leaves out is added from the findings.
    """
    findings, language = image.findings, language_of(question)
    first = Answer("", "findings")
    scripts = [unicodedata.name(letter, "").partition(" ")[0] for letter in question if letter.isalpha()]
    if 2 * sum(script in ("LATIN", "CJK", "FULLWIDTH") for script in scripts) >= max(1, len(scripts)):
        first = yield from _stream_once(model, image, question, history)
    elif history and not scripts:
        language = language_of(history[-1][0])
    if first.text:
        return first
    about = [fault.kind for fault in first.contradictions]
    kind = "" if "verdict" in about else next(filter(None, map(KIND_OF_SENTENCE.get, about)), "")
    asked = ClaimReader(language, findings, question).asked_places if kind == "where" else ()
    kind, claim = ("claim_place", {"place": asked[0].replace("-", " ")}) if asked else (kind, {})
    if first.source != "findings":
        opening = re.sub(r"[.。]$", "", answer_text(kind or "verdict", findings, language, **claim))
        second = yield from _stream_once(model, image, question, history, opening)
        if second.text:
            return Answer(second.text, "corrected", first.contradictions)
    yield (sentence := answer_text(kind or "describe", findings, language, **claim))
    return Answer(sentence, "findings", first.contradictions)


def _stream_once(
    model: LanguageModel, image: ImageResult, question: str, history: History, opening: str = ""
) -> Generator[str, None, Answer]:
    """One try: yields sentences as long as they are supported and the model can be reached; the text may be empty."""
    released, text = "", ""
    try:
        for text in model.texts(image, question, history, opening):
            ends = [match.end() for match in SENTENCE_END.finditer(text)]
            if not ends or ends[-1] <= len(released):
                continue
            faults = check_answer(text[: ends[-1]], question, image.findings)
            # Until more has come, it may be cut off or empty.
            if faults := tuple(fault for fault in faults if fault.kind not in ("cut_off", "empty")):
                return Answer(released, "corrected", faults)
            yield text[len(released) : ends[-1]]
            released = text[: ends[-1]]
    except UserError as error:
        _warn_once(f"{error}; answers are left to the findings")
        return Answer(released, "corrected" if released else "findings")
    if faults := check_answer(text, question, image.findings):
        return Answer(released, "corrected", faults)
    if text != released:
        yield text[len(released) :]
    if more := left_out(text, question, image.findings):
        yield more
        return Answer(text + more, "corrected")
    return Answer(text, "model")


def left_out(answer: str, question: str, findings: Findings) -> str:
    """The findings' own sentences about what a question asks for and a true answer says nothing about; or nothing."""
    language = language_of(question)
    if findings.status == "can't tell" or answer == answer_text("unrelated", findings, language):
        return ""
    reader = ClaimReader(language, findings, question)
    told = {KIND_OF_SENTENCE.get(claim.kind) for claim in reader.claims_of_answer(answer)}
    told |= {"where", "size", "count"} if findings.status == "good" else {"count"} if findings.number == 1 else set()
    kinds = [kind for kind in phrase_table(f"check_{language}")["asks_for"] if kind not in told]
    asked = [kind for kind in kinds if pattern_of(language, "asks_for", kind).search(reader.question)]
    return "".join({"en": " ", "zh": ""}[language] + answer_text(kind, findings, language) for kind in asked)


def check_answer(answer: str, question: str, findings: Findings) -> tuple[Claim, ...]:
    """The statements of an answer that contradict the findings or that nothing in them supports.

    Yes and no are read by the question. Faults of form (``language``, ``cut_off``, ``markup``, …) are returned alone.
    """
    answer = re.sub(r"(\W)\1{3,}", r"\1\1\1", re.sub(r"[*`]+|\b_+|_+\b", "", answer)).strip()
    if faults := tuple(_faults_of_form(answer, question, findings)):
        return faults
    claims = ClaimReader(language_of(question), findings, question).claims_of_answer(answer)
    return tuple(dict.fromkeys(claim for claim in claims if not _is_supported(claim, findings)))


def _faults_of_form(text: str, question: str, findings: Findings) -> Iterator[Claim]:
    language = language_of(question)
    if not re.search(r"\w", text):
        yield Claim("empty", None, text)
        return
    if found := MARKUP.search(text):
        yield Claim("markup", None, found[0])
    elif words := _foreign_words(text, question, language, findings):
        yield Claim("language", None, words)
    if words := _repeated(text):
        yield Claim("repetition", None, words)
    stops = ANSWER_END.search(text)
    rest = "" if stops or LIST_ITEM.search(text) else re.split(r"[.!?。！？;；](?!\d)\s*|\n\s*", text)[-1]
    dangles = pattern_of(language, "dangling").search(re.sub(r"[\s.…]+$", "", text)[-12:])
    items = re.split("[,，、]", rest)
    is_long = any(len(item.split()) > 3 if language == "en" else len(item) > 6 for item in items)
    if is_long or text[-1] in ",，、:：;" or (dangles and (not stops or text.endswith(("...", "…")))):
        yield Claim("cut_off", None, rest or text[-12:])


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


def _is_supported(claim: Claim, findings: Findings) -> bool:
    kind, value, denied, regions = claim.kind, claim.value, claim.denied, findings.regions
    regions = {"largest": regions[:1], "smallest": regions[-1:]}.get(claim.scope, regions)
    if kind in ("verdict", "number") and findings.status == "can't tell":
        return kind == "number" and denied
    if kind == "verdict":
        return (value != denied) == (findings.status == "defective")
    if kind == "place":
        is_there = [value == region.place or value in region.place.split() for region in regions]
        some = all(is_there) and bool(regions) if claim.scope == "every" else any(is_there)
        return not (findings.status == "can't tell" or findings.reaches(value)) if denied else some
    if kind == "number":
        low, high, places = value
        at_places = {region for region in findings.regions if {region.place, *region.place.split()} & {*places}}
        exactly = [region for region in at_places if region.place in places]
        counts = {findings.number, *filter(None, (len(at_places), len(exactly)))}
        return any(low <= count <= high for count in counts) != denied
    if isinstance(value, tuple) and kind in ("size", "probability"):
        _, low, high, shares = value
        return any(low <= share <= high for share in shares) != denied
    if kind == "size" and value:
        sizes = list(phrase_table("check_en")["size"])
        actual = [sizes.index(size_word(area)) for area in areas_of(claim.scope, findings)] if regions else []
        size = sizes.index(value)
        return not actual or (size != actual[0] if denied else any(abs(size - other) <= 1 for other in actual))
    if kind == "form":
        forms = {region.form for region in regions}
        return not forms or (forms != {value} if denied else value in forms)
    if kind == "type":
        return findings.status == "good" and denied
    if kind == "class":
        name, repeats = value
        same = findings.knows_class and _is_same_class(name, findings.class_name)
        return same != denied or (repeats and not findings.knows_class)
    if kind == "references":
        return (findings.references > 0 if value is None else findings.references == value) != denied
    return denied


def _is_same_class(name: str, class_name: str) -> bool:
    spoken = spoken_name(class_name).lower()
    known = {spoken, spoken.rstrip("0123456789"), noun_phrase(class_name, "zh").lower()}
    groups = (group for language in LANGUAGES for group in phrase_table(f"check_{language}")["class_groups"])
    known.update(*(group for group in groups if known & {*group}))
    # Whole words: `nut` is a `metal nut`, `board` no `keyboard`. Chinese has no spaces.
    named = {f" {name.lower()} ", f" {name.lower().removesuffix('s')} "} if name.isascii() else {name}
    known = {f" {word} " if word.isascii() else word for word in known}
    return any(one in other or other in one for one in named for other in known)
