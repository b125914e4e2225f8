"""What an answer in free wording states about a photo, in English or Chinese.

Sentences and clauses are searched for claims by the regular expressions of ``datasets/phrases/check_{en,zh}.yaml``. A
leading yes or no claims, or denies, what the question asks. Hedges, conditions, questions and reported speech claim
nothing; any other sentence without a claim counts as unsupported, unless it plainly states no fact about the photo.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from anomalygpt.datasets.class_info import noun_phrase, phrase_table, spoken_name
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, finding_phrases

Subject = Literal[
    "verdict", "place", "number", "size", "probability", "form", "type", "class", "references", "unsupported"
]
LONGEST = 500  # characters of a sentence that are read at a time: what bounds the time for a text without full stops
NUMERAL = re.compile(
    r"(?<=百分之)[零一二两三四五六七八九十百]+|[一二两三四五六七八九十百]+(?=[处个块片张成年根颗只枚支粒]|[。！]?$)"
)
PLACE = re.compile(r"<([a-z-]+)>")


class Claim(NamedTuple):
    """What a clause states."""

    kind: Subject
    value: Any  # what a kind is claimed to be; see ``answer_check.py``
    words: str
    denied: bool = False  # it states that it is not so
    # Which regions it is about: ``any``, ``largest``, ``smallest``, ``every`` or ``total``; of a verdict: ``any``,
    # ``local``, or what kind of word it is: ``bad_advice``, ``type``.
    scope: str = "any"
    negative: bool = False  # the verdict is worded as a negation: `nothing is wrong`


class ClaimReader:
    """Reads the claims of answers to one question about one photo."""

    def __init__(self, language: Language, findings: Findings, question: str) -> None:
        self.language, self.findings, self.table = language, findings, word_table(language)
        self.question = self._plain(question)
        places = PLACE.findall(self._with_places(self.question))
        self.asked_places = places if len(places) == 1 else []

    def claims_of_answer(self, answer: str) -> list[Claim]:
        """All claims of an answer."""
        text = self._plain(answer)
        yes, no, adverb = (_source(self.language, name) for name in ("affirmative", "negative", "adverb"))
        adverbs = rf"(?:[\s,，]*(?:{adverb}))*[\s,，]*"
        opener = re.match(rf"\W*{adverbs}(?:(?P<yes>{yes})|(?P<no>{no})){adverbs}(?:\W*$|(?<=\w)\s*[^\w\s'<])", text)
        if self._has("no_polarity", self.question):
            return list(self._claims(text))
        plain = [] if opener else list(self._claims(text))
        if opener is None and {claim.scope for claim in plain} <= {"unread"}:  # `适合吗？ - 适合。`
            negation = _source(self.language, "negation")
            opener = re.fullmatch(rf"\W*{adverbs}[我它这]?(?P<no>{negation})?(?P<yes>[㐀-鿿]{{1,8}}?)[的了]?\W*", text)
            opener = opener if opener and opener["yes"] in self.question else None
        if opener is None:
            return plain
        claims = list(self._claims(text[opener.end() :]))
        of_opener = self._claims_of_opener(opener, any(claim.kind == "verdict" for claim in claims))
        if opener["no"] is None and not claims and not of_opener and self._has("asks_fact", self.question):
            return [Claim("unsupported", None, opener[0])]  # `Is it mouldy? - Yes.`
        return claims + of_opener

    def _claims_of_opener(self, opener: re.Match[str], verdict_follows: bool) -> list[Claim]:
        asked, denies = self.question, opener["no"] is not None
        for pattern, plain in self.table["affirm"]:
            asked = re.sub(pattern, plain, asked)
        asked = self._regex("question_not").sub("", asked)
        claims = [c for c in self._claims(asked, asked=True) if c.kind != "unsupported"]
        of_verdict = any(claim.kind == "verdict" for claim in claims)
        dropped = {"class": not self._asks("class"), "references": of_verdict}
        claims = [claim for claim in claims if not dropped.get(claim.kind)]
        if self._has("asks_existence", asked):  # `any defects, however small?`: yes is no size
            claims = [claim for claim in claims if claim.kind not in ("size", "form")]
        exists = opener["yes"] and self._regex("exists").fullmatch(opener["yes"])
        if exists and any(claim.negative and not claim.value for claim in claims):
            denies = True  # `There is nothing wrong? - There is.`
        elif any(claim.negative for claim in claims):
            # `There is nothing wrong, is there? - No.` agrees, `…, right? - No.` does not.
            agrees = denies and (self._has("positive_tag", asked) or self._regex("none").fullmatch(opener["no"]))
            if agrees or verdict_follows:
                return []
        if denies:  # `Are there 3 defects? - No`: not 3
            claims = [claim for claim in claims if not (claim.kind == "type" and verdict_follows)]
            specific = [claim for claim in claims if claim.kind != "verdict"]
            # `Are all at the top? - No`: some may be; `Is there a scratch at the top? - No`: either may be wrong
            if self._has("every", asked) or len({claim.kind for claim in specific}) > 1:
                return []
            claims = specific or [claim for claim in claims if claim.scope == "any"]
        return [c._replace(words=opener[0], denied=c.denied != denies) for c in claims]

    def _claims(self, text: str, asked: bool = False) -> Iterator[Claim]:
        """The claims of a plain text; ``asked``: what a question asks about."""
        sentences = re.split(self.table["sentence_end"], text)
        for sentence in (s[i : i + LONGEST] for s in sentences for i in range(0, len(s), LONGEST)):
            if asked or not sentence.strip().endswith(("?", "？")):
                claims = list(self._claims_of_sentence(sentence, asked))
                yield from claims
                if not (claims or asked) and self._states_fact(sentence.strip()):
                    yield Claim("unsupported", None, sentence, scope="unread")

    def _states_fact(self, sentence: str) -> bool:
        if self.findings.status == "can't tell" and self._has("undecided", sentence):
            return False
        return bool(re.search(r"[^\W\d]", sentence)) and not self._has("no_statement", sentence)

    def _claims_of_sentence(self, sentence: str, asked: bool) -> Iterator[Claim]:
        sentence = re.sub(_source(self.language, "list"), r"\1 or ", self._with_places(sentence.strip()))
        sentence = self._regex("conditional").sub("", sentence)
        scope, placed = self._scope(self.question, "any") if self._asks("largest") else "any", False
        for part in re.split(self.table["clause_end"], sentence):
            clause = self._regex("dropped").sub("", part.strip()).strip()
            scope = self._scope(clause, "any" if placed and "<" in clause else scope)
            placed = placed or "<" in clause
            yield from self._shares(clause, scope, asked)
            if not self._has("hedge", clause):
                yield from self._references(clause)
                clause = self._regex("neutral").sub(" ", clause)
                if self.findings.status == "can't tell":
                    clause = self._regex("undecided").sub(" ", clause)
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

    def _verdict_and_places(self, clause: str, scope: str) -> Iterator[Claim]:
        mentions = list(self._mentions(clause))
        places = PLACE.findall(clause)
        if mentions and not places and not self._has("whole", clause):
            places = self.asked_places  # `Does the top left look ok? - It looks fine.`
        local = bool(places) or self._has("local", clause)
        for bad, negative, found in mentions:
            if bad or not local:
                where = found.lastgroup if found.lastgroup in ("bad_advice", "type") else "local" if local else "any"
                yield Claim("verdict", bad, found[0], scope=where, negative=negative)
        before = clause.partition("<")[0] if self.language == "en" else clause
        negations = len(self._regex("negation").findall(before))
        absent = not any(mention[0] for mention in mentions) if mentions else negations % 2 == 1
        scope = "any" if scope == "every" and len(places) > 1 else scope
        for place in places[:1] if scope == "largest" else places:
            yield Claim("place", place.replace("-", " "), place, absent, scope)

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

    def _numbers(self, clause: str) -> Iterator[Claim]:
        if found := self._regex("more_than_one").search(clause):
            yield Claim("number", (int(found["n"] or 2), 999, ()), found[0], self._negated(clause, found))
        elif (found := self._regex("only_one").search(clause)) and "<" not in clause and not self._asks("references"):
            yield Claim("number", (1, 1, ()), found[0], self._negated(clause, found))
        for found in self._regex("counted").finditer(clause):
            low, high = self._range(found["n"], clause[: found.start()])
            ahead = re.split(r"\d|\bone\b", clause[found.end() :])[0]
            behind = re.split(r"\d|\bone\b", clause[: found.start()])[-1]
            places = tuple(place.replace("-", " ") for place in PLACE.findall(ahead) or PLACE.findall(behind))
            if high > 1 and not (self._asks("references") and low == self.findings.references):
                yield Claim("number", (low, high, places), found[0], self._negated(clause, found))
        if found := self._regex("counted_alone").search(clause):
            low, high = self._range(found["n"], clause[: found.start("n")])
            if self._asks("references"):
                yield Claim("references", low, found[0])
            elif self._asks("count") or found["lead"]:
                yield Claim("number", (low, high, ()), found[0])

    def _range(self, word: str, before: str) -> tuple[int, int]:
        """The least and the largest number that a word means after ``before``: `more than`."""
        number = int(word) if word.isdigit() else 1
        low, high = self.table["vague"].get(word, (number, number))
        before = PLACE.sub("", before)
        if self._has("more", before):
            return low + (not self._has("at_least", before)), 999
        return (0 if self._has("less", before) else low), high

    def _shares(self, clause: str, scope: str, asked: bool) -> Iterator[Claim]:
        if found := self._regex("measure").search(clause):
            known = {*self.findings.image_size, *(n for region in self.findings.regions for n in region.box)}
            numbers = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", found[0])}
            if not (self._has("pixels", found[0]) and numbers <= known):
                yield Claim("size", None, found[0])
        found = self._regex("sure").search(clause)
        if found and self.findings.certainty == "unsure" and not self._has("unsure", clause.replace(found[0], "")):
            yield Claim("probability", None, found[0])
        of_probability, of_area = self._has("probability", clause), self._has("area", clause)
        of_probability = of_probability or (self._asks("probability") and not of_area)
        if asked and not (of_probability or of_area):
            return
        for found in self._regex("percent").finditer(clause):
            digits, unit = (found["n"], 100) if found["n"] else (found["decimal"], 1)
            share = float(digits) / unit
            tolerance = 0.5 * 10.0 ** -len(digits.partition(".")[2]) / unit
            if self._has("about", clause):
                tolerance = max(tolerance, 0.15 * share)
            if found["low"]:
                low = float(found["low"]) / 100
                share, tolerance = (share + low) / 2, (share - low) / 2
            before = clause[: found.start()]
            compares = "less" if self._has("less", before) else "more" if self._has("more", before) else ""
            actual: tuple[float, ...] = ()
            kind: Subject = "probability" if of_probability or found["decimal"] else "size"
            if kind == "size":
                actual = areas_of(scope, self.findings)
            if kind == "probability" or not (of_area or self._asks("area")):
                actual += self._probabilities(clause, found.start())
            denied = not compares and self._has("not_class", before)
            yield Claim(kind, (share, tolerance + 1e-6, compares, actual), found[0], denied)

    def _probabilities(self, clause: str, position: int) -> tuple[float, ...]:
        """What a percentage may be: the probability of what the clause next to it, or else the question, names."""
        bad = self.findings.probability
        of_verdict = bad if self.findings.status == "defective" else 1 - bad
        if self._has("of_error", clause):
            return (1 - of_verdict,)
        asked = self._mentions(self.question) if self._asks("probability") else ()
        if mentions := list(self._mentions(clause)) or list(asked):
            nearest = min(mentions, key=lambda mention: abs(mention[2].start() - position))
            return (bad if nearest[0] else 1 - bad,)
        return (of_verdict,) if self._has("sure", clause) else (bad, of_verdict)

    def _words(self, clause: str, scope: str) -> Iterator[Claim]:
        """Sizes and forms in words, kinds of defects, and facts that no finding is about."""
        in_words: tuple[Subject, Subject] = ("size", "form")
        for kind in in_words:
            text = self._regex(f"not_{kind}").sub(" ", clause)
            for option in self.table[kind]:
                if found := self._regex(kind, option).search(text):
                    yield Claim(kind, option, found[0], self._negated(text, found), scope)
                    text = text.replace(found[0], " ")
        without_value: tuple[Subject, Subject] = ("type", "unsupported")
        for kind in without_value:
            if found := self._regex(kind).search(clause):
                yield Claim(kind, None, found[0], self._negated(clause, found))
        if self._asks("cause") and len(re.findall(r"\w", clause)) > 4 and not self._has("reason", clause):
            yield Claim("unsupported", None, clause)

    def _classes(self, clause: str, asked: bool) -> Iterator[Claim]:
        of_content = self._asks("content") or self._asks("class")
        pattern = _class_pattern(self.language, of_content)
        shown = self._regex("shows").search(clause)
        if shown is None and (of_content or self._asks("type")):
            shown = self._regex("named").search(clause)
        for found in pattern.finditer(clause):
            repeats = not asked and shown is None and found[0] in self.question
            denied = self._has("not_class", clause[: found.start()])
            yield Claim("class", (found[0], repeats), found[0], denied)
        if shown:
            name = re.split(self.table["shows_end"], next(filter(None, shown.groups()), "").strip())[0].strip()
            others = [self._regex("general"), *(self._regex("form", form) for form in self.table["form"])]
            others += [pattern, _verdict_pattern(self.language)]
            if name and not any(other.search(name) for other in others):
                kind: Subject = "type" if self._asks("type") else "class"
                yield Claim(kind, (name, False), name)

    def _references(self, clause: str) -> Iterator[Claim]:
        if found := self._regex("no_references").search(clause):
            yield Claim("references", 0, found[0])
        elif found := self._regex("photos" if self._asks("references") else "references").search(clause):
            number = re.search(r"\d+", found[0])
            yield Claim("references", int(number[0]) if number else None, found[0])

    def _plain(self, text: str) -> str:
        """Lower case, no emphasis, numbers as digits, `part` for the name of the known class."""
        text = re.sub(r"[*`]+|^#+ ", "", text.strip().lower().replace("’", "'"))
        text = re.sub(r"\|(?:[ \d]*\|)?", "\n", text)  # cells of a table
        text = re.sub(r"(?<=\d{9})\d+", "", text)  # `int` refuses thousands of digits
        if self.findings.knows_class:
            for name in (noun_phrase(self.findings.class_name, "zh"), spoken_name(self.findings.class_name)):
                text = re.sub(rf"(?<![a-z]){re.escape(name.lower())}s?(?![a-z])", self.table["part"], text)
        if self.language == "zh":
            text = self._regex("fraction").sub(self._percentage, text)
            text = NUMERAL.sub(lambda found: str(_number(found[0])), text)
        for pattern, plain in self.table["spelling"]:
            text = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z])" if self.language == "en" else pattern, plain, text)
        text = self._regex("fraction").sub(self._percentage, text)
        return re.sub(self.table["lead"], "", text)

    def _with_places(self, sentence: str) -> str:
        """The sentence with <top-left> for each place that it names."""

        def token(found: re.Match[str]) -> str:
            return _token([self.table["places"].get(word.split()[0], "center") for word in found.groups() if word])

        def joined(found: re.Match[str]) -> str:
            return _token(re.findall("[a-z]+", found[1] + found[2])) or found[0]

        for source in _sources(self.language, "place"):
            pattern = rf"(?<![a-z<-])(?:{source})(?![a-z>])" if self.language == "en" else source
            sentence = re.sub(pattern, token, sentence)
        sentence = " ".join(sentence.split())
        for _ in range(2):
            sentence = re.sub(self.table["joined_place"], joined, sentence)
        return re.sub(self.table["place_list"], r"\1 ", sentence)

    def _percentage(self, fraction: re.Match[str]) -> str:
        whole = self.table["fractions"][fraction["part"]] if self.language == "en" else _number(fraction["part"])
        return f"{self.table['nearly']}{100 * _number(fraction['n'] or '1') / max(whole, 1):.1f}%"

    def _regex(self, *keys: str) -> re.Pattern[str]:
        return pattern_of(self.language, *keys)

    def _has(self, name: str, text: str) -> bool:
        return bool(pattern_of(self.language, name).search(text))

    def _asks(self, topic: str) -> bool:
        return self._has(f"asks_{topic}", self.question)


def _number(numeral: str) -> int:
    """The value of a Chinese numeral below 1000."""
    digits = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2}
    if numeral.isdigit():
        return int(numeral)
    hundreds, hundred, rest = numeral.rpartition("百")
    tens, ten, ones = rest.removeprefix("零").rpartition("十")
    value = 100 * digits.get(hundreds, 1) if hundred else 0
    return value + (10 * digits.get(tens, 1) if ten else 0) + digits.get(ones, 0)


def _token(parts: list[str]) -> str:
    """<top-left> of top and left, the other one of center and another; empty where they exclude each other."""
    rows, columns = ({part for part in parts if part in pair} for pair in (("top", "bottom"), ("left", "right")))
    if len(rows) > 1 or len(columns) > 1 or len(parts) > 2:
        return ""
    return f" <{'-'.join((*rows, *columns)) or 'center'}>"


def areas_of(scope: str, findings: Findings) -> tuple[float, ...]:
    """The areas, as shares of the image, that a statement of this scope may name."""
    areas = tuple(region.area for region in findings.regions)
    every = (findings.total_area, *areas)
    return {"total": every[:1], "largest": areas[:1], "smallest": areas[-1:]}.get(scope, every)


# -- tables -----------------------------------------------------------------------------------------------------------


def word_table(language: Language) -> dict[str, Any]:
    """The regular expressions and words of one language."""
    return phrase_table(f"check_{language}")


@cache
def _sources(language: Language, *keys: str) -> list[str]:
    """The regular expressions of an entry; {name} is replaced by another entry."""
    entry: Any = {**word_table(language), "parts": [f"{name}s" for name in class_names() if name.isascii()]}
    for key in keys:
        entry = entry[key]
    sources = [entry] if isinstance(entry, str) else [str(source) for source in entry]
    return [re.sub(r"\{([a-z]+)\}", lambda found: _source(language, found[1]), source) for source in sources]


@cache
def _source(language: Language, *keys: str) -> str:
    return "|".join(_sources(language, *keys))


@cache
def pattern_of(language: Language, *keys: str) -> re.Pattern[str]:
    """An entry as a pattern for whole words; Chinese has no spaces between them."""
    source = _source(language, *keys)
    return re.compile(rf"(?:(?<![a-z])|(?=\W))(?:{source})(?![a-z])" if language == "en" else source)


@cache
def _verdict_pattern(language: Language) -> re.Pattern[str]:
    names = ("good", "bad", "bad_advice", "type", "negation")
    return re.compile("|".join(f"(?P<{name}>{pattern_of(language, name).pattern})" for name in names))


@cache
def class_names(whole: bool = False) -> tuple[str, ...]:
    """Names of parts in both languages, longest first; ``whole``: also what may be a part of a part."""
    translated = phrase_table("zh")["class_names"]
    names = {*translated, *translated.values()} - {"object", "物体"}
    for language in LANGUAGES:
        names |= {*finding_phrases(language)["words"]["classes"]}
        names |= {name for group in word_table(language)["class_groups"] for name in group}
    if not whole:
        names -= {name for language in LANGUAGES for name in word_table(language)["subparts"]}
    return tuple(sorted(names, key=len, reverse=True))


@cache
def _class_pattern(language: Language, whole: bool) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in class_names(whole) if name.isascii() == (language == "en"))
    return re.compile(rf"(?<![a-z])(?:{names})s?(?![a-z])" if language == "en" else names)
