"""Who decides, and how words are set right."""

import pytest

from anomalygpt.datasets.dialogue import detection_question, parse_verdict
from anomalygpt.inference.verdict import asks_for_anomalies, contradicting_opening, decide, opening

QUESTION = "Is there any anomaly in the image?"


@pytest.mark.parametrize(
    ("said", "by_score", "wins", "expected"),
    [
        (True, False, "answer", (True, "answer")),
        (False, True, "answer", (False, "answer")),
        (None, True, "answer", (True, "score")),
        (True, False, "score", (False, "score")),
        (False, True, "score", (True, "score")),
        (None, False, "score", (False, "score")),
    ],
)
def test_who_wins(said: bool | None, by_score: bool, wins, expected: tuple[bool, str]) -> None:
    assert decide(said, by_score, wins) == expected


@pytest.mark.parametrize(
    ("answer", "by_score", "expected"),
    [
        ("No, there is no anomaly in the image.", True, "Yes,"),
        ("Yes, there is one.", False, "No,"),
        ("没有，图中没有异常。", True, "有，"),
        ("有，图中有一处异常。", False, "没有，"),
        ("Yes.", True, None),
        ("No.", False, None),
        ("I can not tell.", True, None),
        ("", True, None),
    ],
)
def test_words_that_contradict_begin_anew_in_their_language(answer: str, by_score: bool, expected: str | None) -> None:
    assert contradicting_opening(QUESTION, answer, by_score) == expected


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("is_anomalous", [True, False])
def test_opening_says_the_verdict(language: str, is_anomalous: bool) -> None:
    assert parse_verdict(opening(is_anomalous, language)) is is_anomalous


def test_questions_of_the_training_are_known() -> None:
    for class_name in (None, "bottle", "a thing of any name"):
        for language in ("en", "zh"):
            assert asks_for_anomalies(detection_question(class_name, language=language))
            assert asks_for_anomalies(detection_question(class_name, with_description=False, language=language))


@pytest.mark.parametrize("question", ["Is it good?", "Is this part fine?", "How large is it?", "Is the screw long?"])
def test_yes_to_another_question_is_not_set_right(question: str) -> None:
    assert not asks_for_anomalies(question)
    assert contradicting_opening(question, "Yes.", False) is None
