"""Who decides, and how words are set right."""

import pytest

from anomalygpt.datasets.dialogue import detection_question, parse_verdict
from anomalygpt.inference.verdict import (
    asks_for_anomalies,
    asks_for_soundness,
    contradicting_opening,
    decide,
    opening,
    says_anomalous,
    soundness_opening,
)

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
        ("No, there is no anomaly in the image.", True, "Yes, there is an anomaly in the image."),
        ("Yes, there is one.", False, "No, there is no anomaly in the image."),
        ("没有，图中没有异常。", True, "有，图中有一处异常。"),
        ("有，图中有一处异常。", False, "没有，图中没有异常。"),
        ("Yes, at the top of it.", True, "Yes, there is an anomaly in the image."),  # the map has no region
        ("Yes.", True, None),
        ("No.", False, None),
        ("I can not tell.", True, None),
        ("", True, None),
    ],
)
def test_words_that_contradict_begin_anew_in_their_language(answer: str, by_score: bool, expected: str | None) -> None:
    assert contradicting_opening(QUESTION, answer, by_score) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes, there is an anomaly in the image, at the left of the image.", None),
        ("Yes, there are 2 anomalies, they are at the left and the top of the image.", None),
        ("Yes, there is an anomaly in the image.", None),
        ("Yes, at the top left.", "Yes, there is an anomaly in the image, at the left"),
        ("Yes, they are at the top and the left.", "Yes, there is an anomaly in the image, at the left"),
        ("No, there is none.", "Yes, there is an anomaly in the image, at the left"),
        ("有，位于图像的右侧。", "有，图中有一处异常，位于图像的左侧"),
    ],
)
def test_words_begin_with_the_place_of_the_largest_region(answer: str, expected: str | None) -> None:
    assert contradicting_opening(QUESTION, answer, True, "left") == expected


def test_no_place_is_named_where_nothing_is_wrong() -> None:
    assert contradicting_opening(QUESTION, "Yes, at the top.", False, "left") == "No, there is no anomaly in the image."


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("is_anomalous", [True, False])
def test_opening_says_the_verdict(language: str, is_anomalous: bool) -> None:
    assert parse_verdict(opening(is_anomalous, language)) is is_anomalous


@pytest.mark.parametrize(
    "question", ["Is there any anomaly in the image", "is there a defect? Is anything wrong with it ?", "图中有异常吗?"]
)
def test_question_mark_makes_no_difference(question: str) -> None:
    assert asks_for_anomalies(question)


def test_questions_of_the_training_are_known() -> None:
    for class_name in (None, "bottle", "a thing of any name"):
        for language in ("en", "zh"):
            assert asks_for_anomalies(detection_question(class_name, language=language))
            assert asks_for_anomalies(detection_question(class_name, with_description=False, language=language))


@pytest.mark.parametrize(
    "question",
    [
        "Is it good?",
        "This is a photo of a bottle. Is this part still OK?",
        "is the  metal nut intact?",
        "Is everything normal",
        "Does it look fine?",
        "Is the small black screw OK ?",
        "它正常吗？",
        "它是否正常",
        "这个零件合格吗?",
        "这是一张瓶子的照片。这个零件是好的吗？",
    ],
)
def test_yes_may_mean_that_nothing_is_wrong(question: str) -> None:
    assert asks_for_soundness(question)
    assert not asks_for_anomalies(question)
    assert (says_anomalous(question, "Yes."), says_anomalous(question, "No.")) == (False, True)
    assert says_anomalous(question, "Hard to say.") is None
    for is_anomalous in (True, False):
        begun = soundness_opening(question, is_anomalous, "top")
        assert begun is not None
        assert says_anomalous(question, begun) is is_anomalous


def test_soundness_opening_names_the_place_of_an_anomaly_alone() -> None:
    assert soundness_opening("Is it good?", True, "top") == "No, there is an anomaly in the image, at the top"
    assert soundness_opening("Is it good?", False, "top") == "Yes, there is no anomaly in the image."
    assert soundness_opening("Is it good?", True) == "No, there is an anomaly in the image."


@pytest.mark.parametrize(
    "question",
    [
        QUESTION,
        "What is good?",
        "Is it damaged?",
        "Is the screw long?",
        "Is the part not okay?",
        "Is this part no longer good?",
        "Is the surface scratched or is it fine?",
        "Isn't it fine?",
        "图中有异常吗？",
        "它不正常吗？",
        "这个零件不合格吗？",
    ],
)
def test_other_questions_do_not_ask_for_soundness(question: str) -> None:
    assert not asks_for_soundness(question)
    assert soundness_opening(question, True) is None


@pytest.mark.parametrize("question", ["Is it good?", "How large is it?", "Is the screw long?"])
def test_yes_to_another_question_is_not_set_right(question: str) -> None:
    assert not asks_for_anomalies(question)
    assert contradicting_opening(question, "Yes.", False) is None
