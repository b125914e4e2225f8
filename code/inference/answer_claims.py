"""What an answer in free wording states about a photo, in English or Chinese.

The regular expressions are those of ``datasets/phrases/check_{en,zh}.yaml``. A leading yes or no claims, or denies,
what the question asks. Hedges, conditions, questions and reported speech claim nothing; any other sentence without a
claim counts as unsupported, unless it plainly states no fact about the photo.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from anomalygpt.datasets.class_info import noun_phrase, phrase_table, spoken_name
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language

LONGEST = 500  # characters of a sentence that are read at a time: what bounds the time for a text without full stops
PLACE = re.compile(r"<([a-z-]+)>")


class Claim(NamedTuple):
    # verdict, place, number, size, probability, form, type, class, references, or unsupported: about none of these
    kind: str
    value: Any  # what a kind is claimed to be; see ``answer_check.py``
    words: str
    denied: bool = False  # it states that it is not so
    scope: str = "any"  # of regions: any, largest, smallest, every, total; of a verdict: any, local, bad_advice, type
    negative: bool = False  # the verdict is worded as a negation: `nothing is wrong`


class ClaimReader:
    """Reads the claims of answers to one question about one photo."""

    def __init__(self, language: Language, findings: Findings, question: str) -> None:
        self.language, self.findings, self.table = language, findings, phrase_table(f"check_{language}")
        self._regex = partial(pattern_of, language)
        self._neutral = ("neutral", "undecided") if findings.status == "can't tell" else ("neutral",)
        self.question = self._plain(question[:LONGEST])
        places = PLACE.findall(self._with_places(self.question))
        self.asked_places = places if len(places) == 1 and not self._asks("several") else []

    def claims_of_answer(self, answer: str) -> list[Claim]:
        """What an answer to the question states; a bare yes or no is read by the question."""
        text = self._plain(answer)
        no_polarity = self._has("no_polarity", self.question)
        opener = None if no_polarity else re.match(_source(self.language, "opener"), text)
        plain = [] if opener else list(self._claims(text))
        if not (opener or no_polarity) and {claim.scope for claim in plain} <= {"unread"}:  # `适合吗？ - 适合。`
            echo = re.fullmatch(_source(self.language, "echo"), text)
            opener = echo if echo and echo["yes"] in self.question else None
        if opener is None:
            if [claim.kind for claim in plain] == ["verdict", "place"] and self._has("every", self.question):
                plain[1] = plain[1]._replace(scope="every")  # `Are all at the top? - There is a defect at the top.`
            if self.asked_places and {claim.kind for claim in plain} == {"verdict", "size"}:
                plain.append(Claim("place", self.asked_places[0].replace("-", " "), self.asked_places[0]))
            return plain
        claims = list(self._claims(text[opener.end() :]))
        if self._has("asks_guarantee", self.question):
            return claims if opener["no"] else [Claim("probability", None, opener[0])]
        unknown = self._regex("known").sub(" ", PLACE.sub(" ", self._with_places(self.question)))
        if self._has("asks_beyond", self.question) or re.search("[a-z]{3,}|[㐀-鿿]{2,}", unknown):
            claims.append(Claim("unsupported", None, opener[0]))  # `Is the seal ok? - No, there is a defect.`
        return claims + self._claims_of_opener(opener, any(claim.kind == "verdict" for claim in claims))

    def _claims_of_opener(self, opener: re.Match[str], verdict_follows: bool) -> list[Claim]:
        asked, denies = self.question, opener["no"] is not None
        for pattern, plain in self.table["affirm"]:
            asked = re.sub(pattern, plain, asked)
        claims = list(self._claims(asked, asked=True))
        of_verdict, exists = any(claim.kind == "verdict" for claim in claims), self._has("asks_existence", asked)
        dropped = {"unsupported": True, "class": not self._asks("class"), "references": of_verdict}
        dropped |= {"size": exists, "form": exists}  # `any defects, however small?`: yes is no size
        claims = [claim for claim in claims if not dropped.get(claim.kind)]
        if self._regex("exists").fullmatch(opener["yes"] or "") and any(c.negative and not c.value for c in claims):
            denies = True  # `There is nothing wrong? - There is.`
        elif any(claim.negative for claim in claims):
            # What a no means, and an English yes, says what follows; a Chinese yes agrees.
            agrees = denies and self._regex("none").fullmatch(opener["no"])
            if agrees or (verdict_follows and (denies or self.language == "en")):
                return []
        if verdict_follows and len({c.value != c.denied for c in claims if c.kind == "verdict"}) > 1:
            return []  # `Is it damaged? Can I use it?`: what follows says which
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
                states_none = any(self._has(name, sentence.strip()) for name in ("no_statement", *self._neutral[1:]))
                if not (claims or asked or states_none) and re.search(r"[^\W\d]", sentence):
                    yield Claim("unsupported", None, sentence, scope="unread")

    def _claims_of_sentence(self, sentence: str, asked: bool) -> Iterator[Claim]:
        sentence = re.sub(_source(self.language, "list"), r"\1 or ", self._with_places(sentence.strip()))
        sentence = self._regex("conditional").sub("", sentence)
        scope, placed = self._scope(self.question, "any") if self._asks("largest") else "any", False
        for part in re.split(self.table["clause_end"], sentence):
            garbled = self._regex("garbled_of_known" if self.findings.knows_class else "garbled").search(part)
            if garbled and not (garbled["echo"] and garbled["echo"] in self.question):
                yield Claim("unsupported", None, garbled[0])
            clause = self._regex("dropped").sub("", part.strip()).strip()
            scope = self._scope(clause, "any" if placed and "<" in clause else scope)
            placed = placed or "<" in clause
            yield from self._shares(clause, scope, asked)
            if not self._has("hedge", clause):
                yield from self._references(clause)
                for name in self._neutral:
                    clause = self._regex(name).sub(" ", clause)
                yield from self._verdict_and_places(clause, scope)
                yield from self._numbers(clause)
                yield from self._words(clause, scope)
                yield from self._classes(clause, asked)

    def _scope(self, clause: str, before: str) -> str:
        """Which regions a clause is about; `the largest, at the top, covers …` goes on over commas."""
        found = [scope for scope in ("total", "largest", "smallest", "every") if self._has(scope, clause)]
        if not found:
            return before if before in ("largest", "smallest") and not self._has("smaller", clause) else "any"
        return "any" if found[:2] == ["largest", "smallest"] else found[0]

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
        for found in self._regex("verdict").finditer(clause):
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
        low, high = self.table["vague"].get(word) or (int(word), int(word))
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
            share, before = float(digits) / unit, clause[: found.start()]
            tolerance = 0.5 * 10.0 ** -len(digits.partition(".")[2]) / unit
            tolerance = max(tolerance, 0.15 * share) if self._has("about", clause) else tolerance
            low, high = (float(found["low"]) / 100, share) if found["low"] else (share - tolerance, share + tolerance)
            if compares := self._has("less", before) or self._has("more", before):
                low, high = (0, share - 2e-6) if self._has("less", before) else (share + 2e-6, 1)
            kind = "probability" if of_probability or found["decimal"] else "size"
            actual = areas_of(scope, self.findings) if kind == "size" else ()
            if kind == "probability" or not (of_area or self._asks("area")):
                exact = self._probabilities(clause, found.start())
                shown = () if compares else (min(0.99, max(0.01, value)) for value in exact)  # by probability_text
                actual = (*actual, *exact, *shown)
            denied = not compares and self._has("not_class", before)
            yield Claim(kind, (share, low - 1e-6, high + 1e-6, actual), found[0], denied)

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
        for kind in ("size", "form"):
            text = self._regex(f"not_{kind}").sub(" ", clause)
            for option in self.table[kind]:
                if found := self._regex(kind, option).search(text):
                    yield Claim(kind, option, found[0], self._negated(text, found), scope)
                    text = text.replace(found[0], " ")
        for kind in ("type", "unsupported"):
            if found := self._regex(kind).search(clause):
                yield Claim(kind, None, found[0], self._negated(clause, found))
        if self._asks("cause") and len(re.findall(r"\w", clause)) > 4 and not self._has("reason", clause):
            yield Claim("unsupported", None, clause)

    def _classes(self, clause: str, asked: bool) -> Iterator[Claim]:
        of_content = self._asks("content") or self._asks("class")
        pattern = self._regex("whole_class" if of_content else "class")
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
            others += [pattern, self._regex("verdict")]
            if name and not any(other.search(name) for other in others):
                yield Claim("type" if self._asks("type") else "class", (name, False), name)

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
            text = self._regex("numeral").sub(lambda found: str(_number(found[0])), text)
        for pattern, plain in self.table["spelling"]:
            text = re.sub(rf"(?<![a-z])(?:{pattern})(?![a-z])" if self.language == "en" else pattern, plain, text)
        return re.sub(self.table["lead"], "", self._regex("fraction").sub(self._percentage, text))

    def _with_places(self, sentence: str) -> str:
        """The sentence with <top-left> for each place that it names."""
        for number in range(len(self.table["place"])):
            source = _source(self.language, "place", number)
            pattern = rf"(?<![a-z<-])(?:{source})(?![a-z>])" if self.language == "en" else source
            sentence = re.sub(pattern, self._token, sentence)
        sentence = " ".join(sentence.split())
        for _ in range(2):
            sentence = re.sub(self.table["joined_place"], self._token, sentence)
        return re.sub(self.table["place_list"], r"\1 ", sentence)

    def _token(self, found: re.Match[str]) -> str:
        """<top-left> for a match of top and left, of center and another one the other; none where they don't fit."""
        words = re.findall(r"\w+", " ".join(filter(None, found.groups())))
        parts = [self.table["places"].get(word, "center") for word in words]
        rows, columns = ({part for part in parts if part in pair} for pair in (("top", "bottom"), ("left", "right")))
        if len(rows) > 1 or len(columns) > 1 or len(parts) > 2:
            return found[0] if "<" in found[0] else ""
        return f" <{'-'.join((*rows, *columns)) or 'center'}>"

    def _percentage(self, fraction: re.Match[str]) -> str:
        whole = self.table["fractions"][fraction["part"]] if self.language == "en" else _number(fraction["part"])
        return f"{self.table['nearly']}{100 * _number(fraction['n'] or '1') / max(whole, 1):.1f}%"

    def _has(self, name: str, text: str) -> bool:
        return bool(self._regex(name).search(text))

    def _asks(self, topic: str) -> bool:
        return self._has(f"asks_{topic}", self.question)


def _number(numeral: str) -> int:
    """The value of a Chinese numeral below 1000."""
    if numeral.isdigit():
        return int(numeral)
    value = digit = 0
    for number in map(int, map(unicodedata.numeric, numeral.replace("两", "二"))):
        value, digit = (value + max(digit, 1) * number, 0) if number >= 10 else (value, number)
    return value + digit


def areas_of(scope: str, findings: Findings) -> tuple[float, ...]:
    """The areas, as shares of the image, that a statement of this scope may name."""
    areas = tuple(region.area for region in findings.regions)
    every = (findings.total_area, *areas)
    return {"total": every[:1], "largest": areas[:1], "smallest": areas[-1:]}.get(scope, every)


@cache
def class_names(whole: bool = False) -> tuple[str, ...]:
    """Names of parts in both languages, longest first; ``whole``: also what may be a part of a part."""
    translated = phrase_table("zh")["class_names"]
    names = {*translated, *translated.values()} - {"object", "物体"}
    tables = [phrase_table(f"check_{language}") for language in LANGUAGES]
    names.update(*(phrase_table(f"findings_{language}")["words"]["classes"] for language in LANGUAGES))
    names.update(*(group for table in tables for group in table["class_groups"]))
    names.difference_update(*(() if whole else table["subparts"] for table in tables))
    return tuple(sorted(names, key=len, reverse=True))


@cache
def _source(language: Language, *keys: str | int) -> str:
    """The regular expressions of an entry; {name} is replaced by another entry, or by the names of parts."""
    entry: Any = phrase_table(f"check_{language}")
    for name in ("part_names", "all_part_names"):
        names = class_names(whole=name == "all_part_names")
        entry = entry | {name: [re.escape(each) for each in names if each.isascii() == (language == "en")]}
    for key in keys:
        entry = entry[key]
    source = entry if isinstance(entry, str) else "|".join(map(str, entry))
    return re.sub(r"\{([a-z_]+)\}", lambda found: _source(language, found[1]), source)


@cache
def pattern_of(language: Language, *keys: str | int) -> re.Pattern[str]:
    """An entry as a pattern for whole words; Chinese has no spaces between them."""
    source = _source(language, *keys)
    return re.compile(rf"(?:(?<![a-z])|(?=\W))(?:{source})(?![a-z])" if language == "en" else source)
