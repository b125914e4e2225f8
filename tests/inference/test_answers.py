"""What is read from questions and answers, who decides, and how answers are made to agree with the map."""

import pytest

from anomalygpt.datasets.class_info import phrase_table
from anomalygpt.datasets.dialogue import detection_answer, detection_question, follow_up_answer
from anomalygpt.inference.answers import (
    asks_for_anomalies,
    asks_for_soundness,
    class_in_prompt,
    contradicting_opening,
    decide,
    opening,
    parse_positions,
    parse_verdict,
    says_anomalous,
    soundness_opening,
)

QUESTION = "Is there any anomaly in the image?"


@pytest.mark.parametrize(
    ("prompt", "expected", "official"),
    [
        ("This is a photo of a bottle for anomaly detection.", "bottle", "bottle"),
        ("a photo of capsules", "capsules", "capsule"),
        ("a photo of a capsule", "capsule", "capsule"),
        ("Are these pipe fryums fine?", "pipe fryum", "fryum"),
        ("a pipe_fryum", "pipe fryum", "fryum"),
        ("Is the rule applicable to this textile?", "object", "cable"),
        ("Is this Metal_Nut OK?", "metal nut", "object"),
        ("two bottles", "bottle", "bottle"),
        ("three toothbrushes", "toothbrush", "toothbrush"),
        ("the screw bag", "screw bag", "screw"),
        ("a juice bottle", "juice bottle", "bottle"),
        ("one pushpin", "pushpins", "object"),
        ("a picture of pcb4", "pcb4", "pcb"),
        ("carpet tiles", "carpet", "carpet"),
        ("检测bottle照片", "bottle", "bottle"),
        ("What about this?", "object", "object"),
    ],
)
def test_the_class_in_a_prompt(prompt, expected, official):
    assert class_in_prompt(prompt) == expected
    assert class_in_prompt(prompt, "official") == official


def test_the_class_is_found_again_in_our_own_questions():
    for name in ("bottle", "metal_nut", "capsules", "macaroni2", "pipe_fryum", "splicing_connectors"):
        assert class_in_prompt(detection_question(name, with_description=False)) == name.replace("_", " ")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes, there is an anomaly in the image.", True),
        ("No, there is no anomaly in the image.", False),
        ("  **yes**", True),
        ("NO", False),
        ("No.", False),
        ("None of the parts is damaged.", None),
        ("Normal.", None),
        ("Nothing is wrong.", None),
        ("Not sure.", None),
        ("Yesterday it was fine.", None),
        ("There is no anomaly.", None),
        ("", None),
        ("是的，图中有异常。", True),
        ("有，图中有一处异常。", True),
        ("没有，图中没有异常。", False),
        ("否", False),
        ("不是。", False),
        ("无异常", False),
        ("不确定", None),
        ("是否有异常？", None),
    ],
)
def test_the_verdict_of_an_answer(answer, verdict):
    assert parse_verdict(answer) is verdict


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_answer_of_ours_gives_its_own_verdict(language):
    for positions in ([], ["top"], ["top", "left"]):
        assert parse_verdict(detection_answer(bool(positions), positions, language)) is bool(positions)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_positions_are_read_back_from_the_answers_that_name_them(language):
    for position in phrase_table(language)["positions"]:
        assert parse_positions(detection_answer(True, [position], language)) == (position,)
    several = ["bottom right", "top", "center"]
    assert parse_positions(detection_answer(True, several, language)) == tuple(several)
    assert parse_positions(detection_answer(False, (), language)) == ()
    assert parse_positions(detection_answer(True, (), language)) == ()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It is near the Top-Left corner, not at the bottom.", ("top left", "bottom")),
        ("Upper right, and in the centre.", ("top right", "center")),
        ("At the lower\nleft.", ("bottom left",)),
        ("The stopper was leftover; it is bright and rightly topped.", ()),
        ("At the top, and again at the top.", ("top",)),
        ("异常在左上方，另一处在中间。", ("top left", "center")),
        ("位于图像的底部和右边。", ("bottom", "right")),
        ("", ()),
    ],
)
def test_the_longest_position_wins_and_parts_of_words_are_none(answer, expected):
    assert parse_positions(answer) == expected


def test_whether_to_use_a_defective_part_is_no_question_for_a_verdict():
    assert parse_verdict(follow_up_answer("usable", "bottle", ["top"], 0.1)) is None, "yes would mean a defect"


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
