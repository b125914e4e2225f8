"""Whether an answer in free wording contradicts what is known about the photo.

An answer is cut into sentences and clauses. Each clause is searched for claims (verdict, place, number, …) by the
regular expressions of ``datasets/phrases/check_{en,zh}.yaml``, and each claim is compared with the findings. A leading
yes or no claims, or denies, what the question asks. Hedged clauses (`it may be a crack`), conditions, questions and
reported speech claim nothing. Conventions: `left` is true of a region at the top left, but not the reverse; `no defect
at the left` is true unless a region is exactly there; a size word may be one step off; the name of a part that only
repeats the question's claims nothing while the class is unknown; Markdown emphasis is ignored.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from anomalygpt.datasets import dialogue
from anomalygpt.datasets.dialogue import noun_phrase, phrase_table, spoken_name
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, finding_phrases, size_word

Kind = Literal[
    "verdict", "place", "number", "size", "probability", "form", "type", "class", "references", "unsupported",
    "language", "repetition", "cut_off", "empty", "markup",
]  # fmt: skip
SIZES = ("tiny", "small", "medium", "large")
FORMS = ("compact", "elongated", "scattered")
MARKUP = re.compile(
    r"###|<\|?/?\w+\|?/?>|\[/?INST\]|<<SYS|(?:^|[.!?。！？])\s*(?:human|user|assistant|system)\s*[:：]"
    r"|^(?:findings|检测结论)\s*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
CHINESE = re.compile(r"[㐀-鿿]")
NUMERAL = re.compile(r"(?<=百分之)[零一二两三四五六七八九十百]+|[一二两三四五六七八九十]+(?=[处个块片张成年根颗只枚支粒]|[。！]?$)")
NEUTRAL_LATIN = {"led", "roi"}  # of three letters and more; shorter ones (OK, NG, AI) are all neutral
SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’)）」*]*$")
PLACE = re.compile(r"<([a-z-]+)>")


@dataclass(frozen=True)
class Contradiction:
    """One statement of an answer that the findings don't support.

    Attributes:
        kind: what it is about.
        words: the statement, or a part of it.
    """

    kind: Kind
    words: str


@dataclass(frozen=True)
class _Claim:
    """What a clause states.

    Attributes:
        value: what a kind is claimed to be; see :func:`_is_supported`.
        denied: it states that it is not so.
        scope: which regions it is about: ``any``, ``largest``, ``smallest``, ``every`` or ``total``; of a verdict:
            ``any``, ``local`` or ``advice``.
        negative: the verdict is worded as a negation: `nothing is wrong`.
    """

    kind: Kind
    value: Any
    words: str
    denied: bool = False
    scope: str = "any"
    negative: bool = False


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
    if faults := tuple(_faults_of_form(answer.strip(), question, findings)):
        return faults
    reader = _Reader(language_of(question), findings, question)
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
    rest = "" if SENTENCE_END.search(text) else re.split(r"[.!?。！？;；\n]\s*", text)[-1]
    dangles = _regex(language, "dangling").search(re.sub(r"[\s.…]+$", "", text)[-12:])
    items = re.split("[,，、]", rest)
    is_long = any(len(item.split()) > 3 if language == "en" else len(item) > 6 for item in items)
    if is_long or text[-1] in ",，、:：;" or (dangles and (rest or text.endswith(("...", "…")))):
        yield Contradiction("cut_off", rest or text[-12:])


def _foreign_words(text: str, question: str, language: Language, findings: Findings) -> str:
    """What is not in the language of the question; empty where all is. The name of the part is neutral."""
    for name in (findings.class_name, spoken_name(findings.class_name), noun_phrase(findings.class_name, "zh")):
        text = text.replace(name, "")
    letters = [c for c in text if c.isalpha() and c != "µ" and not CHINESE.match(c) or c == "\ufffd"]
    if strange := [c for c in letters if "LATIN" not in unicodedata.name(c, "")]:
        return "".join(strange)
    if language == "en":
        foreign = _regex("en", "foreign").findall(text.lower())
        return "".join(CHINESE.findall(text)) or " ".join(foreign if len(foreign) > 1 else ())
    known = NEUTRAL_LATIN | {word for name in _class_names() for word in name.split()}
    known |= set(re.findall(r"[a-z]+", question.lower()))
    return " ".join(word for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in known)


def _repeated(text: str) -> str:
    """A sentence that comes twice, or words that come three times in a row; else empty."""
    sentences = [s.strip().lower() for s in re.split(r"[.!?。！？\n]+(?!\d)", text) if len(s.strip()) > 3]
    twice = [sentence for sentence in sentences if sentences.count(sentence) > 1]
    words = r"(?<!\w)([a-z]\w*(?:\W+\w+){0,9}?)(?:\W+\1){2,}(?!\w)|([㐀-鿿]{2,12}?)(?:\W?\2){2,}|([㐀-鿿]{5,})\W?\3"
    found = re.search(words, text, re.IGNORECASE)
    return twice[0] if twice else found[0] if found else ""


# -- claims -----------------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Reads the claims of answers to one question about one photo."""

    language: Language
    findings: Findings
    question: str
    table: dict[str, Any] = field(init=False)
    asks: dict[str, bool] = field(init=False)

    def __post_init__(self) -> None:
        self.table = _table(self.language)
        self.question = self._plain(self.question)
        topics = {"count": "asks_count", "references": "asks_references", "class": "asks_class"}
        topics |= {"probability": "probability", "area": "area", "content": "asks_content", "largest": "asks_largest"}
        self.asks = {topic: self._has(name, self.question) for topic, name in topics.items()}

    def claims_of_answer(self, answer: str) -> list[_Claim]:
        """All claims of an answer."""
        text = self._plain(answer)
        yes, no = (_source(self.language, name) for name in ("affirmative", "negative"))
        opener = re.match(rf"\W*(?:(?P<yes>{yes})|(?P<no>{no}))(?:\W*$|\s*[^\w\s'<])", text)
        if opener is None or self._has("no_polarity", self.question):
            return list(self._claims(text))
        claims = list(self._claims(text[opener.end() :]))
        of_opener = self._claims_of_opener(opener, any(claim.kind == "verdict" for claim in claims))
        if opener["yes"] and not claims and not of_opener and self._has("asks_fact", self.question):
            return [_Claim("unsupported", None, opener[0])]  # `Is it mouldy? - Yes.`
        return claims + of_opener

    def _claims_of_opener(self, opener: re.Match[str], verdict_follows: bool) -> list[_Claim]:
        """What a leading yes claims, or a leading no denies."""
        asked, denies = self.question, opener["no"] is not None
        for pattern, plain in self.table["affirm"]:
            asked = re.sub(pattern, plain, asked)
        asked = self._regex("question_not").sub("", asked)
        claims = [c for c in self._claims(asked, asked=True) if c.kind != "unsupported"]
        of_verdict = any(claim.kind == "verdict" for claim in claims)
        dropped = {"class": not self.asks["class"], "references": of_verdict}
        claims = [claim for claim in claims if not dropped.get(claim.kind)]
        if self._has("asks_existence", asked):  # `any defects, however small?`: yes is no size
            claims = [claim for claim in claims if claim.kind not in ("size", "form")]
        if any(claim.negative for claim in claims):
            # `There is nothing wrong, is there? - No.` agrees, `…, right? - No.` does not.
            agrees = denies and (self._has("positive_tag", asked) or self._regex("none").fullmatch(opener["no"]))
            if agrees or verdict_follows:
                return []
        if denies and self._has("every", asked):  # `Are all at the top? - No`: some may be
            return []
        if denies:  # `Are there 3 defects? - No`: not 3
            specific = [claim for claim in claims if claim.kind != "verdict"]
            claims = specific or [claim for claim in claims if claim.scope == "any"]
        return [replace(c, words=opener[0], denied=c.denied != denies) for c in claims]

    def _claims(self, text: str, asked: bool = False) -> Iterator[_Claim]:
        """The claims of a plain text; ``asked``: what a question asks about."""
        for sentence in re.split(self.table["sentence_end"], text):
            if not asked and sentence.strip().endswith(("?", "？")):
                continue
            sentence = re.sub(_source(self.language, "list"), r"\1 or ", _with_places(sentence, self.language))
            sentence = self._regex("conditional").sub("", sentence)
            scope, placed = self._scope(self.question, "any") if self.asks["largest"] else "any", False
            for part in re.split(self.table["clause_end"], sentence):
                clause = self._regex("dropped").sub("", part.strip()).strip()
                scope = self._scope(clause, "any" if placed and "<" in clause else scope)
                placed = placed or "<" in clause
                yield from self._shares(clause, scope, asked)
                if not self._has("hedge", clause):
                    yield from self._references(clause)
                    clause = self._regex("neutral").sub(" ", clause)
                    yield from self._verdict_and_places(clause, scope)
                    yield from self._numbers(clause)
                    yield from self._words(clause, scope)
                    yield from self._classes(clause, asked)

    def _scope(self, clause: str, before: str) -> str:
        """Which regions a clause is about; `the largest, at the top, covers …` goes on over commas."""
        if self._has("total", clause):
            return "total"
        largest, smallest = self._has("largest", clause), self._has("smallest", clause)
        if largest or smallest:
            return "any" if largest and smallest else "largest" if largest else "smallest"
        if self._has("every", clause):
            return "every"
        return before if before in ("largest", "smallest") and not self._has("smaller", clause) else "any"

    def _verdict_and_places(self, clause: str, scope: str) -> Iterator[_Claim]:
        mentions = list(self._mentions(clause))
        places = PLACE.findall(clause)
        local = bool(places) or self._has("local", clause)
        for bad, negative, found in mentions:
            if bad or not local:
                where = "advice" if found.lastgroup == "bad_advice" else "local" if local else "any"
                yield _Claim("verdict", bad, found[0], scope=where, negative=negative)
        before = clause.partition("<")[0] if self.language == "en" else clause
        absent = (
            not any(mention[0] for mention in mentions)
            if mentions
            else len(self._regex("negation").findall(before)) % 2 == 1
        )
        scope = "any" if scope == "every" and len(places) > 1 else scope
        for place in places[:1] if scope == "largest" else places:
            yield _Claim("place", place.replace("-", " "), place, absent, scope)

    def _mentions(self, clause: str) -> Iterator[tuple[bool, bool, re.Match[str]]]:
        """Each word of a verdict: (means defective, by a negation, the word)."""
        negations, before = 0, None
        for found in _verdict_pattern(self.language).finditer(clause):
            if found.lastgroup == "negation":
                negations, before = (1 if before is not None else negations + 1), None
                continue
            bad = found.lastgroup != "good"
            if before not in (None, bad):
                negations = 0  # `no damage and looks good`: the negation is about the damage
            before = bad
            negated = (negations + self._has("negated_after", clause[found.end() :])) % 2 == 1
            yield bad != negated, negated, found

    def _negated(self, clause: str, found: re.Match[str]) -> bool:
        return len(self._regex("negation").findall(clause[: found.start()])) % 2 == 1

    def _numbers(self, clause: str) -> Iterator[_Claim]:
        places = tuple(place.replace("-", " ") for place in PLACE.findall(clause))
        if found := self._regex("more_than_one").search(clause):
            yield _Claim("number", (2, 999, ()), found[0], self._negated(clause, found))
        elif (found := self._regex("only_one").search(clause)) and not places:
            yield _Claim("number", (1, 1, ()), found[0], self._negated(clause, found))
        for found in self._regex("counted").finditer(clause):
            low, high = self._range(found["n"])
            if low > 1:
                yield _Claim("number", (low, high, places), found[0], self._negated(clause, found))
        if found := self._regex("counted_alone").search(clause):
            low, high = self._range(found["n"])
            if self.asks["references"]:
                yield _Claim("references", low, found[0])
            elif self.asks["count"] or found["lead"]:
                yield _Claim("number", (low, high, places), found[0])

    def _range(self, word: str) -> tuple[int, int]:
        """The least and the largest number that a word means."""
        number = int(word) if word.isdigit() else 1
        low, high = self.table["vague"].get(word, (number, number))
        return low, high

    def _shares(self, clause: str, scope: str, asked: bool) -> Iterator[_Claim]:
        """Percentages, measures and how sure the answer is."""
        if found := self._regex("measure").search(clause):
            known = {*self.findings.image_size, *(n for region in self.findings.regions for n in region.box)}
            numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", found[0])}
            if not (self._has("pixels", found[0]) and numbers <= known):
                yield _Claim("size", None, found[0])
        found = self._regex("sure").search(clause)
        if found and self.findings.certainty == "unsure" and not self._has("unsure", clause):
            yield _Claim("probability", None, found[0])
        of_probability, of_area = self._has("probability", clause), self._has("area", clause)
        of_probability = of_probability or (self.asks["probability"] and not of_area)
        if asked and not (of_probability or of_area):
            return
        for found in self._regex("percent").finditer(clause):
            digits, unit = (found["n"], 100) if found["n"] else (found["decimal"], 1)
            share = float(digits) / unit
            tolerance = 0.5 * 10.0 ** -len(digits.partition(".")[2]) / unit
            if self._has("about", clause):
                tolerance = max(tolerance, 0.15 * share)
            before = clause[: found.start()]
            compares = "less" if self._has("less", before) else "more" if self._has("more", before) else ""
            actual = (
                self._probabilities(clause, found.start())
                if of_probability or found["decimal"]
                else _areas(scope, self.findings)
            )
            if not (of_probability or found["decimal"] or of_area or self.asks["area"]):
                actual += self._probabilities(clause, found.start())
            kind: Kind = "probability" if of_probability or found["decimal"] else "size"
            denied = not compares and self._has("not_class", before)
            yield _Claim(kind, (share, tolerance + 1e-6, compares, actual), found[0], denied)

    def _probabilities(self, clause: str, position: int) -> tuple[float, ...]:
        """What a percentage may be: the probability of what the clause next to it, or else the question, names."""
        bad = self.findings.probability
        of_verdict = bad if self.findings.status == "defective" else 1 - bad
        if self._has("of_error", clause):
            return (1 - of_verdict,)
        asked = self._mentions(self.question) if self.asks["probability"] else ()
        if mentions := list(self._mentions(clause)) or list(asked):
            nearest = min(mentions, key=lambda mention: abs(mention[2].start() - position))
            return (bad if nearest[0] else 1 - bad,)
        return (of_verdict,) if self._has("sure", clause) else (bad, of_verdict)

    def _words(self, clause: str, scope: str) -> Iterator[_Claim]:
        """Sizes and forms in words, kinds of defects, and facts that no finding is about."""
        kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (("size", SIZES), ("form", FORMS))
        for kind, options in kinds:
            text = self._regex(f"not_{kind}").sub(" ", clause)
            for option in options:
                if found := self._regex(kind, option).search(text):
                    yield _Claim(kind, option, found[0], self._negated(text, found), scope)
                    text = text.replace(found[0], " ")
        names: tuple[Kind, ...] = ("type", "unsupported")
        for kind in names:
            if found := self._regex(kind).search(clause):
                yield _Claim(kind, None, found[0], self._negated(clause, found))

    def _classes(self, clause: str, asked: bool) -> Iterator[_Claim]:
        pattern = _class_pattern(self.language)
        shown = self._regex("shows").search(clause)
        if shown is None and self.asks["content"]:
            shown = self._regex("named").search(clause)
        for found in pattern.finditer(clause):
            repeats = not asked and shown is None and found[0] in self.question
            denied = self._has("not_class", clause[: found.start()])
            yield _Claim("class", (found[0], repeats), found[0], denied)
        if shown:
            name = re.split(self.table["shows_end"], next(filter(None, shown.groups()), "").strip())[0].strip()
            others = (
                self._regex("general"),
                self._regex("form", "elongated"),
                self._regex("form", "compact"),
                pattern,
                _verdict_pattern(self.language),
            )
            if name and not any(other.search(name) for other in others):
                yield _Claim("class", (name, False), name)

    def _references(self, clause: str) -> Iterator[_Claim]:
        if found := self._regex("no_references").search(clause):
            yield _Claim("references", 0, found[0])
        elif found := self._regex("photos" if self.asks["references"] else "references").search(clause):
            number = re.search(r"\d+", found[0])
            yield _Claim("references", int(number[0]) if number else None, found[0])

    def _plain(self, text: str) -> str:
        """Lower case, no emphasis, numbers as digits, `part` for the name of the known class."""
        text = re.sub(r"[*`]+|^#+ ", "", text.strip().lower().replace("’", "'"))
        if self.findings.knows_class:
            for language in LANGUAGES:
                name = re.escape(noun_phrase(self.findings.class_name, language).lower())
                name = re.escape(spoken_name(self.findings.class_name).lower()) if language == "en" else name
                text = re.sub(rf"(?<![a-z]){name}(?![a-z])", self.table["part"], text)
        if self.language == "zh":
            text = NUMERAL.sub(lambda found: str(_number(found[0])), text)
        for pattern, plain in self.table["spelling"]:
            text = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z])" if self.language == "en" else pattern, plain, text)
        return re.sub(self.table["lead"], "", text)

    def _regex(self, *keys: str) -> re.Pattern[str]:
        return _regex(self.language, *keys)

    def _has(self, name: str, text: str) -> bool:
        return bool(_regex(self.language, name).search(text))


def _number(numeral: str) -> int:
    """The value of a Chinese numeral up to 100."""
    digits = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "百": 100}
    tens, ten, ones = numeral.partition("十")
    return 10 * digits.get(tens[:1], 1) + digits.get(ones[:1], 0) if ten else digits[numeral[-1]]


# -- places -----------------------------------------------------------------------------------------------------------


def _with_places(sentence: str, language: Language) -> str:
    """The sentence with <top-left> for each place that it names."""
    names = _table(language)["places"]
    for source in _sources(language, "place"):
        pattern = rf"(?<![a-z<-])(?:{source})(?![a-z>])" if language == "en" else source
        sentence = re.sub(
            pattern,
            lambda found: _token(
                [names.get(word.split()[0], "") for word in found.groups("-")[:2] if word not in ("", "-")]
            ),
            sentence,
        )
    sentence = " ".join(sentence.split())
    joined = re.compile(_table(language)["joined_place"])
    for _ in range(2):
        sentence = joined.sub(lambda found: _token(re.findall("[a-z]+", found[1] + found[2])) or found[0], sentence)
    return re.sub(_table(language)["place_list"], r"\1 ", sentence)


def _token(parts: list[str]) -> str:
    """<top-left> of top and left, the other one of center and another; empty where they exclude each other."""
    rows, columns = ({part for part in parts if part in pair} for pair in (("top", "bottom"), ("left", "right")))
    if len(rows) > 1 or len(columns) > 1 or len(parts) > 2:
        return ""
    return f" <{'-'.join((*rows, *columns)) or 'center'}>"


# -- comparison with the findings -------------------------------------------------------------------------------------


def _is_supported(claim: _Claim, findings: Findings) -> bool:
    defective, value, denied = findings.status == "defective", claim.value, claim.denied
    of_scope = {"largest": findings.regions[:1], "smallest": findings.regions[-1:]}
    regions = of_scope.get(claim.scope, findings.regions)
    if claim.kind == "verdict":
        return (value != denied) == defective
    if claim.kind == "place":
        if denied:
            return value not in findings.places
        is_there = [value == region.place or value in region.place.split() for region in regions]
        return all(is_there) and defective if claim.scope == "every" else any(is_there)
    if claim.kind == "number":
        low, high, places = value
        counts = {findings.number, sum(region.place in places for region in findings.regions) or findings.number}
        return any(low <= count <= high for count in counts) != denied
    if isinstance(value, tuple) and claim.kind in ("size", "probability"):
        return _is_share(*value) != denied
    if claim.kind == "size" and value:
        actual = [SIZES.index(size_word(area)) for area in _areas(claim.scope, findings)] if defective else []
        size = SIZES.index(value)
        return not actual or (size != actual[0] if denied else any(abs(size - other) <= 1 for other in actual))
    if claim.kind == "form":
        forms = {region.form for region in regions}
        return not forms or (forms != {value} if denied else value in forms)
    if claim.kind == "type":
        return not defective and denied
    if claim.kind == "class":
        name, repeats = value
        same = findings.knows_class and _is_same_class(name, findings.class_name)
        return same != denied or (repeats and not findings.knows_class)
    if claim.kind == "references":
        return (findings.references > 0 if value is None else findings.references == value) != denied
    return denied


def _areas(scope: str, findings: Findings) -> tuple[float, ...]:
    areas = tuple(region.area for region in findings.regions)
    return {"total": (findings.total_area,), "largest": areas[:1], "smallest": areas[-1:]}.get(
        scope, (findings.total_area, *areas)
    )


def _is_share(share: float, tolerance: float, compares: str, actual: tuple[float, ...]) -> bool:
    if compares:
        return any(value < share if compares == "less" else value > share for value in actual)
    shown = [*actual, *(min(0.99, max(0.01, value)) for value in actual)]  # as probability_text shows them
    return any(abs(value - share) <= tolerance for value in shown)


def _is_same_class(name: str, class_name: str) -> bool:
    known = {spoken_name(class_name).lower(), noun_phrase(class_name, "zh").lower()}
    for language in LANGUAGES:
        known |= {word for group in _table(language)["class_groups"] if known & set(group) for word in group}
    singular = name.lower().removesuffix("s")
    return any(singular in one or one in singular for one in known)


# -- tables -----------------------------------------------------------------------------------------------------------


@cache
def _table(language: Language) -> dict[str, Any]:
    path = Path(dialogue.__file__).with_name("phrases") / f"check_{language}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _sources(language: Language, *keys: str) -> list[str]:
    """The regular expressions of an entry; {name} is replaced by another entry."""
    entry: Any = _table(language)
    for key in keys:
        entry = entry[key]
    parts = {"parts": "|".join(f"{name}s" for name in _class_names() if name.isascii())}
    sources = (
        entry if isinstance(entry, list) else [str(word) for word in entry] if isinstance(entry, dict) else [entry]
    )
    return [
        re.sub(r"\{([a-z]+)\}", lambda found: parts.get(found[1]) or _source(language, found[1]), s) for s in sources
    ]


def _source(language: Language, *keys: str) -> str:
    return "|".join(_sources(language, *keys))


@cache
def _regex(language: Language, *keys: str) -> re.Pattern[str]:
    """An entry as a pattern for whole words; Chinese has no spaces between them."""
    source = _source(language, *keys)
    return re.compile(rf"(?:(?<![a-z])|(?=\W))(?:{source})(?![a-z])" if language == "en" else source)


@cache
def _verdict_pattern(language: Language) -> re.Pattern[str]:
    names = ("good", "bad", "bad_advice", "type", "negation")
    return re.compile("|".join(f"(?P<{name}>{_regex(language, name).pattern})" for name in names))


@cache
def _class_names() -> tuple[str, ...]:
    """Names of parts in both languages, longest first."""
    translated = phrase_table("zh")["class_names"]
    names = {*translated, *translated.values()}
    for language in LANGUAGES:
        names |= {*finding_phrases(language)["words"]["classes"]}
        names |= {name for group in _table(language)["class_groups"] for name in group}
        names -= {*_table(language)["no_classes"]}
    return tuple(sorted(names, key=len, reverse=True))


@cache
def _class_pattern(language: Language) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in _class_names() if name.isascii() == (language == "en"))
    return re.compile(rf"(?<![a-z])(?:{names})s?(?![a-z])" if language == "en" else names)
