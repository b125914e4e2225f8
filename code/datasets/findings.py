"""What is known about one photo, as a record: the source of the badge, the table, JSON, prompt and answers."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anomalygpt.datasets.class_info import noun_phrase, phrase_table

Status = Literal["good", "defective", "can't tell"]
Form = Literal["compact", "elongated", "scattered"]
Language = Literal["en", "zh"]

LANGUAGES: tuple[Language, ...] = ("en", "zh")
UNKNOWN_CLASS = "object"  # the class of a part that nobody named
MOST_PLACES = 4  # further places are summed up as "elsewhere"
SIZE_LIMITS = (("tiny", 0.002), ("small", 0.01), ("medium", 0.05))  # a region's share of the image; above: large
SURE, FAIRLY_SURE = 0.9, 0.7  # probability of the verdict


@dataclass(frozen=True)
class RegionFinding:
    place: str  # cell of the 3 x 3 grid, ``top left`` … ``bottom right``
    box: tuple[int, int, int, int]  # (left, top, right, bottom) in the photo's pixels, right and bottom exclusive
    area: float  # share of the photo's area, 0..1
    peak: float  # the map's largest value in it
    form: Form  # rough shape


@dataclass(frozen=True)
class Findings:
    """All that is known about a photo; answers may state nothing else."""

    status: Status
    probability: float  # that the photo is defective, 0..1
    # Largest first: one or more if ``defective``, none if ``good``, else where the map is highest, or none.
    regions: tuple[RegionFinding, ...]
    class_name: str = UNKNOWN_CLASS
    references: int = 0  # how many reference photos it was compared with
    image_size: tuple[int, int] = (224, 224)  # (width, height) in pixels
    reason: str = ""  # why there is no verdict: ``other_part``, ``unknown_part`` or ``near_threshold``; else empty
    probability_without_odd: float | None = None  # without the references that are unlike the others, if there are any

    @property
    def number(self) -> int:
        return len(self.regions)

    @property
    def total_area(self) -> float:
        """Share of the photo's area that all regions cover, 0..1."""
        return min(1.0, sum(region.area for region in self.regions))

    @property
    def places(self) -> tuple[str, ...]:
        """Each place once, that of the largest region first."""
        return tuple(dict.fromkeys(region.place for region in self.regions))

    def reaches(self, place: str) -> bool:
        """Whether a defect may be at a place, a cell of the 3 x 3 grid: by its name, or by a quarter of the cell."""
        if any(place in (region.place, *region.place.split()) for region in self.regions):
            return True
        column, row = (1 + (high in place) - (low in place) for low, high in (("left", "right"), ("top", "bottom")))
        for region in self.regions:  # shares of the cell's width and height
            ends = zip(region.box[:2], region.box[2:], self.image_size, (column, row), strict=True)
            across, down = (min(3 * end / side, at + 1) - max(3 * start / side, at) for start, end, side, at in ends)
            if min(across, down) > 0 and across * down >= 0.25:
                return True
        return False

    @property
    def certainty(self) -> str:
        """How sure the verdict is: ``sure``, ``fairly sure`` or ``unsure``."""
        of_verdict = {"defective": self.probability, "good": 1 - self.probability}.get(self.status, 0.0)
        return "sure" if of_verdict >= SURE else "fairly sure" if of_verdict >= FAIRLY_SURE else "unsure"

    @property
    def shown_probability(self) -> float | None:
        """The probability; None of another part or of an unknown one, where it says nothing about the photo."""
        return None if self.reason in ("other_part", "unknown_part") else self.probability

    @property
    def knows_class(self) -> bool:
        return self.class_name != UNKNOWN_CLASS

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields, a region's place as ``position``, and what follows from them."""
        regions = [{"position": region.pop("place"), **region} for region in asdict(self)["regions"]]
        found = {**asdict(self), "number": self.number, "total_area": self.total_area, "certainty": self.certainty}
        return found | {"probability": self.shown_probability, "places": list(self.places), "regions": regions}


def language_of(question: str) -> Language:
    """The language to answer in: Chinese where the question has a Chinese character, else English."""
    return "zh" if re.search("[㐀-鿿]", question) else "en"


def size_word(area: float) -> str:
    """A region's share of the image, 0..1, as ``tiny``, ``small``, ``medium`` or ``large``."""
    return next((word for word, limit in SIZE_LIMITS if area < limit), "large")


def percent(share: float, language: Language = "en") -> str:
    """A share of the image, 0..1: one decimal below 10 %."""
    if share < 0.0005:
        return {"en": "less than 0.1%", "zh": "不到0.1%"}[language]
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"


def probability_text(probability: float | None) -> str:
    """A probability, 0..1, as 1% … 99%: no verdict is beyond doubt. A dash where there is none."""
    return "–" if probability is None else f"{min(99, max(1, round(100 * probability)))}%"


def without_odd_text(probability: float | None, language: Language) -> str:
    """What the verdict would be without the references that are unlike the others; empty where there are none."""
    if probability is None:
        return ""
    words = phrase_table(f"findings_{language}")["words"]["without_odd"]
    return words["defective" if probability > 0.5 else "good"].format(probability=probability_text(probability))


def joined(words: Sequence[str], language: str) -> str:
    """``a, b and c``; as many words as there are, even none."""
    phrases = phrase_table(language)
    return phrases["separator"].join([*words[:-2], phrases["last_separator"].join(words[-2:])])


def places_text(places: Sequence[str], language: Language) -> str:
    """Places as a list in words; more than ``MOST_PLACES`` end in "elsewhere"."""
    words = phrase_table(f"findings_{language}")["words"]
    names = [words["place"][place] for place in places[:MOST_PLACES]]
    names += [words["elsewhere"]] if len(places) > MOST_PLACES else []
    return joined(names, language)


def findings_text(findings: Findings, language: Language = "en") -> str:
    """The findings as one line: what the language model reads before the question."""
    lines = phrase_table(f"findings_{language}")["findings"]
    about = lines["one" if findings.number == 1 else "several"] if findings.number else ""
    if findings.status == "can't tell":
        about = answer_text("verdict", findings, language)
    parts = [lines[findings.status], about, lines["part" if findings.knows_class else "no_part"]]
    parts += [lines["references" if findings.references else "no_references"]]
    return " ".join(filter(None, parts)).format(**_slots(findings, language))


def answer_text(kind: str, findings: Findings, language: Language, **claim: str) -> str:
    """The true answer to a kind of question, a key of the phrases; ``claim``: its ``place`` or ``type``, if any."""
    slots, places = _slots(findings, language), phrase_table(f"findings_{language}")["words"]["place"]
    slots |= {"claimed": places.get(claim.get("place")), "type": claim.get("type")}
    if findings.status == "can't tell":
        forms = phrase_table(f"findings_{language}")["undecided"]
        return (forms[findings.reason] + forms["highest" if findings.regions else "end"]).format(**slots)
    verdict, known = findings.status, "known" if findings.knows_class else "unknown"
    wrong = "wrong" if len(findings.places) == 1 else "wrong_several"
    cases = ["any", f"{known}_{verdict}", *([] if findings.references else [f"none_{verdict}"]), verdict]
    named = any(claim.get("place") in (place, *place.split()) for place in findings.places)
    if kind == "claim_place" and not named and findings.reaches(claim["place"]):
        kind = "where"
    cases += ["right" if named else wrong, "one" if findings.number == 1 else "several"]
    forms = phrase_table(f"findings_{language}")["answers"][kind]
    return next(forms[case] for case in cases if case in forms).format(**slots)


def _slots(findings: Findings, language: Language) -> dict[str, Any]:
    words, count = phrase_table(f"findings_{language}")["words"], findings.references
    slots: dict[str, Any] = {
        "probability": probability_text(findings.probability),
        "certainty": words["certainty"][findings.certainty],
        "number": findings.number,
        "noun_phrase": noun_phrase(findings.class_name, language),
        "zh": noun_phrase(findings.class_name, "zh"),
        "references": words["references"]["one" if count == 1 else "several"].format(count=count),
    }
    if findings.regions:
        largest = findings.regions[0]
        named = {"place": largest.place, "size": size_word(largest.area), "form": largest.form}
        named["form_phrase"] = largest.form
        slots |= {name: words[name][value] for name, value in named.items()}
        slots |= {"area": percent(largest.area, language), "total": percent(findings.total_area, language)}
        slots["places"] = places_text(findings.places, language)
    return slots
