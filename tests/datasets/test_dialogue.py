"""Questions, answers and class names in training text."""

import numpy as np
import pytest

from anomalygpt.datasets.class_info import describe, noun_phrase, parts_shown, phrase_table
from anomalygpt.datasets.dialogue import (
    Wording,
    defect_sentence,
    detection_question,
)
from anomalygpt.inference.answers import parse_verdict

ONE = "Yes, there is an anomaly in the image"


@pytest.mark.parametrize(
    ("positions", "answer"),
    [
        (["top left"], f"{ONE}, at the top left of the image."),
        (["top left", "center"], "they are at the top left and the center of the image."),
        (["top", "left", "right"], "there are 3 anomalies in the image, they are at the top, the left and the right of "
         "the image."),
        (["center", "center"], "Yes, there are 2 anomalies in the image, they are at the center of the image."),
    ],
)  # fmt: skip
def test_the_answers_have_the_papers_form(positions, answer):
    assert Wording().answer("verdict", positions).endswith(answer)
    assert Wording().answer("verdict") == "No, there is no anomaly in the image."


def test_the_question_has_the_papers_form():
    question = detection_question("metal_nut", with_description=False)
    assert question == "This is a photo of a metal nut for anomaly detection. Is there any anomaly in the image?"
    opening, _, end = detection_question("bottle").partition(", which should be ")
    assert opening == "This is a photo of a bottle for anomaly detection"
    assert end == f"{describe('bottle')}. Is there any anomaly in the image?"
    assert detection_question(None) == "Is there any anomaly in the image?"
    rng = np.random.default_rng(0)
    assert len({detection_question("bottle", rng) for _ in range(50)}) > 3, "the generator varies it"


def test_names_read_well():
    assert noun_phrase("own_part") == "an own part"
    assert noun_phrase("pushpins") == "pushpins"
    assert noun_phrase("carpet_tiles") == "a carpet"
    assert noun_phrase("metal_nut", "zh") == "金属螺母"


@pytest.mark.parametrize(
    ("class_name", "defect", "english", "chinese"),
    [
        ("screw", "scratch_head", "The head of the screw is scratched.", "螺丝头部有划痕。"),
        ("carpet_tiles", "hole", "There is a hole in the carpet.", "地毯上有破洞。"),
        ("gear", "crack", "There is a crack.", "有裂纹。"),
        ("gear", "oily_spot", "The defect is an oily spot.", "缺陷类型是“oily spot”。"),
        ("gear", "loose screws", "The defect is loose screws.", "缺陷类型是“loose screws”。"),
        ("candle", "other,Bubble, chunk of wax missing", "There is a bubble. A piece of the wax is missing.", None),
        ("gear", "defective", None, None),
        ("toothbrush", "defective", "Bristles of the toothbrush are bent, missing or dirty.",
         "牙刷的刷毛弯曲、缺失或有污物。"),
    ],
)  # fmt: skip
def test_the_sentence_of_a_defect(class_name, defect, english, chinese):
    assert defect_sentence(class_name, defect) == english
    if chinese or not english:
        assert defect_sentence(class_name, defect, "zh") == chinese


def test_both_languages_have_the_same_keys():
    def keys(tree):
        return {key: keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None

    english, chinese = phrase_table("en"), phrase_table("zh")
    assert chinese.keys() - english.keys() == {"class_names"}
    for part in english.keys() - {"descriptions"}:
        assert keys(english[part]) == keys(chinese[part]), part


@pytest.mark.parametrize(
    ("kind", "class_name", "positions", "area", "answer"),
    [
        ("where", "bottle", ["top"], 0.01, "It is at the top of the image."),
        ("where", "bottle", ["top", "left"], 0.01, "They are at the top and the left of the image."),
        ("count", "bottle", ["top", "left"], 0.01, "There are 2 anomalies in the image."),
        ("count", "bottle", [], 0, "There are no anomalies in the image."),
        ("size", "bottle", ["top"], 0.0234, "It covers about 2.3 % of the image."),
        ("size", "bottle", ["top"], 0.0002, "It covers less than 0.1 % of the image."),
        ("size", "bottle", ["top", "left"], 0.25, "Together they cover about 25 % of the image."),
        ("what", "metal_nut", [], 0, "The photo shows a metal nut."),
        ("usable", "bottle", [], 0, "It looks usable, as there is no anomaly in the image."),
        ("parts", "bottle", [], 0, "There is one part in the photo, a bottle."),
        ("parts", "candle", [], 0, "There are 4 parts in the photo."),
    ],
)
def test_follow_up_answers_by_hand(kind, class_name, positions, area, answer):
    assert Wording().answer(kind, positions, class_name=class_name, area=area) == answer
    assert "checked" in Wording().answer("usable", ["top"])
    assert "surface" in Wording().answer("parts", class_name="carpet_tiles")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_conversations_alternate_and_start_with_the_verdict(language):
    rng = np.random.default_rng(1)
    lengths = set()
    for number in range(300):
        positions = ["center", "top"][: number % 3]
        wording = Wording(languages=(language,))
        turns = wording.conversation("screw", positions, 0.05 * bool(positions), None, rng)
        lengths.add(len(turns))
        assert [turn.role for turn in turns] == ["human", "assistant"] * (len(turns) // 2)
        assert parse_verdict(turns[1].text) is bool(positions)
        assert not any("{" in turn.text for turn in turns)
    assert lengths == {2, 4, 6}


@pytest.mark.parametrize(("class_name", "known"), [("bottle", True), ("capsules", False)])
def test_the_number_of_parts_is_asked_only_where_it_is_known(class_name, known):
    rng = np.random.default_rng(0)
    turns = [turn for _ in range(100) for turn in Wording().conversation(class_name, [], 0, None, rng)]
    assert any("How many parts" in turn.text for turn in turns) is known
    assert parts_shown(class_name) == (1 if known else None)
