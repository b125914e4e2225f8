"""Answers in free wording are compared with the findings: precision and recall on cases written by hand."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalygpt.datasets.findings import (
    LANGUAGES,
    Findings,
    Language,
    RegionFinding,
    answer_text,
    findings_text,
    language_of,
)
from anomalygpt.datasets.findings_dialogue import PLACES, draw_findings, draw_question, kinds
from anomalygpt.inference.answer_check import check_answer, stream_checked
from anomalygpt.inference.answer_claims import Claim, pattern_of

TABLE = yaml.safe_load(Path(__file__).with_name("answer_check_cases.yaml").read_text(encoding="utf-8"))
CASES = [case for name, cases in TABLE.items() if name != "findings" for case in cases]
STATES_NUMBER = ("defect", "verdict", "sound", "count", "describe", "usable", "claim_count", "claim_type", "pressure")


def make_findings(entry: dict[str, Any]) -> Findings:
    regions = tuple(
        RegionFinding(place, (0, 0, 1, 1), area, 2.0, form) for place, area, form in entry.get("regions", ())
    )
    return Findings(**{**entry, "regions": regions, "image_size": tuple(entry.get("image_size", (224, 224)))})


FINDINGS = {name: make_findings(entry) for name, entry in TABLE["findings"].items()}


def kinds_found(name: str, question: str, answer: str) -> set[str]:
    return {contradiction.kind for contradiction in check_answer(answer, question, FINDINGS[name])}


@pytest.mark.parametrize("language", LANGUAGES)
def test_precision_and_recall_on_cases_written_by_hand(language: Language) -> None:
    cases = [case for case in CASES if language_of(case[1]) == language]
    outcomes: Counter[tuple[bool, bool]] = Counter()
    wrong = []
    for name, question, answer, expected in cases:
        contradicts, found = expected not in (True, "neither"), kinds_found(name, question, answer)
        outcomes[contradicts, bool(found)] += 1
        if contradicts != bool(found):
            wrong.append((name, question, answer, expected, found))
    caught = outcomes[True, True]
    assert len(cases) >= 180
    assert caught / (caught + outcomes[False, True]) >= 0.99, wrong
    assert caught / (caught + outcomes[True, False]) >= 0.99, wrong


def test_kinds_of_contradictions_are_named() -> None:
    caught = [(case, kinds_found(*case[:3])) for case in CASES if case[3] not in (True, "neither", "unsupported")]
    read = [(set(expected.split("/")), found) for (*_, expected), found in caught if found and found != {"unsupported"}]
    assert len(read) / len(caught) >= 0.85  # a statement that can't be read is unsupported, whatever it is about
    assert sum(bool(expected & found) for expected, found in read) / len(read) >= 0.98


def drawn_answers(seed: int, number: int):
    """(kind, language, question, claim, findings) at random."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        findings = draw_findings(rng)
        for language in LANGUAGES:
            for kind in rng.choice(kinds(), 6, replace=False):
                question, claim = draw_question(kind, findings, language, rng, careless=0)
                if language_of(question) == language:  # `???` has no language
                    yield kind, language, question, claim, findings


def test_answers_of_the_findings_pass() -> None:
    refused = Counter[bool]()
    for kind, language, question, claim, findings in drawn_answers(seed=0, number=300):
        answer = answer_text(kind, findings, language, **claim)
        faults = check_answer(answer, question, findings)
        refused[bool(faults)] += 1
        # A yes or no to what the findings don't know: `Has it survived the drop?`
        assert not faults or faults == (Claim("unsupported", None, faults[0].words),), (question, answer, faults)
        assert not faults or pattern_of(language, "opener").match(answer.lower()), (question, answer, faults)
    assert refused[True] / refused.total() < 0.02


def altered(findings: Findings, what: str) -> Findings | None:
    """Findings that differ in one thing; None where they can't."""
    if what == "verdict":
        region = RegionFinding("center", (0, 0, 1, 1), 0.02, 2.0, "compact")
        good = findings.status == "good"
        status, regions = ("defective", (region,)) if good else ("good", ())
        return replace(findings, status=status, regions=regions, probability=1 - findings.probability)
    if what == "probability":
        return replace(findings, probability=(findings.probability + 0.3) % 1)
    if not findings.regions:
        return None
    if what == "place":
        words = set(" ".join(findings.places).split())
        others = [place for place in PLACES if not words & set(place.split())]
        return (
            replace(findings, regions=tuple(replace(r, place=others[0]) for r in findings.regions)) if others else None
        )
    if what == "number":
        return replace(findings, regions=(*findings.regions, replace(findings.regions[0], area=1e-5)))
    return replace(findings, regions=tuple(replace(region, area=region.area / 3) for region in findings.regions))


@pytest.mark.parametrize("what", ["verdict", "place", "number", "area", "probability"])
def test_answers_of_other_findings_fail(what: str) -> None:
    compared = 0
    for kind, language, question, claim, findings in drawn_answers(seed=1, number=100):
        other = altered(findings, what)
        if other is None or kind == "unrelated" or (what == "number" and kind not in STATES_NUMBER):
            continue
        true, false = (answer_text(kind, one, language, **claim) for one in (findings, other))
        if true == false or (what == "place" and kind == "claim_place") or (what == "area" and "0.1%" in true):
            continue
        compared += 1
        assert check_answer(false, question, findings), (question, false, findings)
    assert compared > 100


# -- no verdict -------------------------------------------------------------------------------------------------------

HIGHEST = (RegionFinding("top left", (0, 0, 9, 9), 0.02, 0.9, "compact"),)
REASONS = ("other_part", "unknown_part", "near_threshold")


def without_verdict(reason: str, regions: tuple[RegionFinding, ...]) -> Findings:
    references = 0 if reason == "unknown_part" else 4
    return Findings("can't tell", 0.5, regions, references=references, reason=reason)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("regions", [(), HIGHEST])
@pytest.mark.parametrize("reason", REASONS)
def test_an_answer_without_verdict_passes(reason: str, regions: tuple[RegionFinding, ...], language: Language) -> None:
    findings = without_verdict(reason, regions)
    rng = np.random.default_rng(0)
    answers = set()
    for kind in kinds(language):
        for _ in range(10):
            question, claim = draw_question(kind, findings, language, rng, careless=0)
            if language_of(question) == language:
                answers.add(answer := answer_text(kind, findings, language, **claim))
                assert check_answer(answer, question, findings) == (), question
    assert len(answers) == 1
    place = {"en": "at the top left", "zh": "左上角"}[language]
    for text in (*answers, findings_text(findings, language)):
        assert (place in text) == bool(regions)
    assert findings.certainty == "unsure"
    assert findings.to_dict()["reason"] == reason


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("reason", REASONS)
def test_a_verdict_contradicts_findings_without_one(reason: str, language: Language) -> None:
    findings = without_verdict(reason, HIGHEST)
    question = {"en": "What is the verdict?", "zh": "结论是什么？"}[language]
    for other in (Findings("good", 0.1, ()), Findings("defective", 0.9, HIGHEST)):
        for kind in ("verdict", "usable", "describe", "claim_count"):
            assert check_answer(answer_text(kind, other, language), question, findings)


def test_reasons_differ() -> None:
    for language in LANGUAGES:
        assert len({answer_text("verdict", without_verdict(reason, ()), language) for reason in REASONS}) == len(
            REASONS
        )


# -- any text ---------------------------------------------------------------------------------------------------------

PIECES = (
    "no ",
    "yes, ",
    "<top-left> ",
    "top ",
    "5% ",
    "1/2 ",
    "```",
    "| ",
    "不",
    "有缺陷",
    "左上角",
    "百分之",
    "😀",
    "שלום ",
)
PIECES += ("\x00", "\n", "###", "<script>")
TEXTS = st.one_of(st.text(max_size=400), st.lists(st.sampled_from(PIECES), max_size=200).map("".join))


@settings(max_examples=150, deadline=None)
@given(answer=TEXTS, question=TEXTS, times=st.sampled_from([1, 2, 25]), seed=st.integers(0, 10_000))
def test_any_text_is_checked(answer: str, question: str, times: int, seed: int) -> None:
    findings = draw_findings(np.random.default_rng(seed))
    found = check_answer(answer * times, question, findings)
    assert found or any(character.isalnum() for character in answer)  # a text without a word is no answer


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Is it ok?", "en"),
        ("它好吗？", "zh"),
        ("123", "en"),
        ("???", "en"),
        ("这是 screw 吗", "zh"),
        ("Это хорошо?", "en"),
    ],
)
def test_language_of_a_question(question: str, language: str) -> None:
    assert language_of(question) == language


CENTER = Findings("defective", 0.97, (RegionFinding("center", (0, 0, 9, 9), 0.02, 2.0, "compact"),), "object", 2)
GOOD = Findings("good", 0.05, (), "object", 2)


@pytest.mark.parametrize(
    ("findings", "question", "answer", "kinds"),
    [
        (GOOD, "这玩意儿是不是废了", "是的，图中没有缺陷。", {"verdict"}),
        (GOOD, "碎了没？", "是的，图中没有缺陷。", {"verdict", "type"}),
        (GOOD, "碎了没？", "不是，图中没有缺陷。", set()),
        (CENTER, "裂了没？", "无法判断是不是没有缺陷，中央有1处缺陷。", {"unsupported"}),
        (CENTER, "没裂吧？", "无法判断是不是裂合计，中央有1处缺陷。", {"unsupported"}),
        (CENTER, "有锈斑吗？", "无法判断是不是锈斑，中央有1处缺陷。", set()),
        (GOOD, "生锈了没", "图中没有缺陷，也没有没有生锈。", {"unsupported"}),
        (GOOD, "有没有缺陷？能用吗？", "没有，图中没有缺陷。", set()),
        (CENTER, "有没有缺陷？能用吗？", "有，中央有1处缺陷。", set()),
        (CENTER, "有没有缺陷？能用吗？", "没有，图中没有缺陷。", {"verdict"}),
        (GOOD, "有缺陷吗？", "根据参考照片判断没有缺陷。", set()),
        (GOOD, "断了吧？", "是的，图中没有缺陷。", {"verdict", "type"}),
        (CENTER, "左上角的缺陷多大？", "缺陷较小，占图像的2.0%。", {"place"}),
        (
            CENTER,
            "How large is the defect at the top left?",
            "The defect is small and covers 2.0% of the image.",
            {"place"},
        ),
        (CENTER, "中央的缺陷多大？", "缺陷较小，占图像的2.0%。", set()),
    ],
)
def test_broken_wording_two_questions_at_once_and_places_without_a_defect(findings, question, answer, kinds) -> None:
    assert {claim.kind for claim in check_answer(answer, question, findings)} == kinds


class Repeating:
    """A language model that always says the same."""

    def texts(self, image, question, history, opening=""):
        yield "缺陷较小，占图像的2.0%。"


def test_a_place_without_a_defect_is_denied_first() -> None:
    image = SimpleNamespace(findings=CENTER)
    answer = "".join(stream_checked(Repeating(), image, "左上角的缺陷多大？"))
    assert answer == "左上角没有缺陷，缺陷位于中央。"
