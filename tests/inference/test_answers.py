"""How questions and answers are parsed, the verdict, and how answers are made to agree with the map."""

from dataclasses import replace

import pytest

from anomalygpt.datasets.class_info import phrase_table
from anomalygpt.datasets.dialogue import Wording, detection_question
from anomalygpt.inference.answers import (
    class_in_prompt,
    means_anomalous,
    parse_positions,
    parse_verdict,
)
from anomalygpt.inference.results import prediction
from tests.fake_predictor import TOP_LEFT, result_with

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


def test_class_is_found_again_in_generated_questions():
    for name in ("bottle", "metal_nut", "capsules", "macaroni2", "pipe_fryum", "splicing_connectors"):
        assert class_in_prompt(detection_question(name, with_description=False)) == name.replace("_", " ")


@pytest.mark.parametrize(
    ("verdict", "answers"),
    [
        (True, "Yes, there is an anomaly in the image.|  **yes**|是的，图中有异常。|有，图中有一处异常。"),
        (False, "No, there is no anomaly in the image.|NO|No.|没有，图中没有异常。|否|不是。|无异常"),
        (None, "None of the parts is damaged.|Normal.|Nothing is wrong.|Not sure.|Yesterday it was fine."),
        (None, "There is no anomaly.||不确定|是否有异常？"),
    ],
)
def test_the_verdict_of_an_answer(verdict, answers):
    assert [parse_verdict(answer) for answer in answers.split("|")] == [verdict] * len(answers.split("|"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_generated_answer_and_opening_gives_its_own_verdict(language):
    for positions in ([], ["top"], ["top", "left"]):
        assert parse_verdict(Wording().answer("verdict", positions, language)) is bool(positions)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_positions_are_read_back_from_the_answers_that_name_them(language):
    for position in phrase_table(language)["positions"]:
        assert parse_positions(Wording().answer("verdict", [position], language)) == (position,)
    several = ["bottom right", "top", "center"]
    assert parse_positions(Wording().answer("verdict", several, language)) == tuple(several)
    assert parse_positions(Wording().answer("verdict", (), language)) == ()
    # Whether to use a defective part is no question for a verdict: yes would mean a defect.
    assert parse_verdict(Wording().answer("usable", ["top"])) is None


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


@pytest.mark.parametrize(
    ("answer", "by_score", "wins", "expected"),
    [
        ("Yes, at the top.", False, "answer", (True, "answer", False)),
        ("No.", True, "answer", (False, "answer", False)),
        ("Yes.", True, "answer", (True, "answer", True)),
        ("None that I can see.", True, "answer", (True, "score", True)),
        ("Yes.", False, "score", (False, "score", False)),
        ("No.", True, "score", (True, "score", False)),
        ("", False, "score", (False, "score", True)),
    ],
)
def test_verdict_is_the_answers_or_the_scores(answer: str, by_score: bool, wins, expected) -> None:
    image = replace(result_with(TOP_LEFT, "object"), score_probability=0.9 if by_score else 0.1)
    found = prediction(image, "Is there any defect?", answer, wins)
    assert (found.is_anomalous, found.verdict_from, found.answer_agrees) == expected


SOUNDNESS = "Is it good?|This is a photo of a bottle. Is this part still OK?|is the  metal nut intact?|它正常吗？"
SOUNDNESS += "|Is everything normal|Does it look fine?|Is the small black screw OK ?|这个零件合格吗?|它是否正常"
SOUNDNESS += "|这是一张瓶子的照片。这个零件是好的吗？"
OTHER = (
    "What is good?|Is it damaged?|Is the screw long?|Is the part not okay?|Is this part no longer good?|Isn't it fine?"
)
OTHER += "|How large is it?|Is the surface scratched or is it fine?|图中有异常吗？|它不正常吗？|这个零件不合格吗？"


@pytest.mark.parametrize("question", SOUNDNESS.split("|"))
def test_yes_to_a_question_for_soundness_means_normal(question: str) -> None:
    assert (means_anomalous(question, "Yes."), means_anomalous(question, "No.")) == (False, True)
    assert means_anomalous(question, "Hard to say.") is None


@pytest.mark.parametrize("question", [QUESTION, *OTHER.split("|")])
def test_other_questions_do_not_ask_for_soundness(question: str) -> None:
    assert means_anomalous(question, "Yes.") is True
