"""Questions, answers, class names and verdicts."""

import numpy as np
import pytest

from anomalygpt.datasets.dialogue import (
    PHRASES,
    _classes,
    class_in_prompt,
    conversation,
    defect_sentence,
    describe,
    detection_answer,
    detection_question,
    follow_up_answer,
    marks_position,
    noun_phrase,
    parse_positions,
    parse_verdict,
    parts_shown,
    phrase_table,
    position_name,
    positions_of,
)

GRID = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]


def test_the_nine_cells_have_the_papers_names():
    centres = [(15 + 30 * column, 5 + 10 * row) for row in range(3) for column in range(3)]
    assert [position_name(centre, (90, 30)) for centre in centres] == GRID


def test_a_box_lies_where_its_centre_lies():
    assert position_name((0, 0, 90, 30), (90, 90)) == "top"
    assert position_name((80, 80, 90, 90), (90, 90)) == position_name((90, 90), (90, 90)) == "bottom right"


def test_positions_of_a_mask_by_hand():
    target = np.zeros((90, 90), bool)
    assert positions_of(target) == ()
    target[2:12, 2:12] = True
    assert positions_of(target) == ("top left",)
    target[40:60, 40:60] = True
    assert positions_of(target) == ("center", "top left")
    target[40:60, 61:63] = True  # a gap of one pixel divides nothing
    assert positions_of(target) == ("center", "top left")


def test_the_answers_have_the_papers_form():
    assert detection_answer(False) == "No, there is no anomaly in the image."
    one = detection_answer(True, ["top left"])
    assert one == "Yes, there is an anomaly in the image, at the top left of the image."
    two = detection_answer(True, ["top left", "center"])
    assert two == "Yes, there are 2 anomalies in the image, they are at the top left and the center of the image."
    three = detection_answer(True, ["top", "left", "right"])
    assert three.endswith(
        "there are 3 anomalies in the image, they are at the top, the left and the right of the image."
    )
    same = detection_answer(True, ["center", "center"])
    assert same == "Yes, there are 2 anomalies in the image, they are at the center of the image."
    assert detection_answer(True) == "Yes, there is an anomaly in the image."


def test_the_question_has_the_papers_form():
    question = detection_question("metal_nut", with_description=False)
    assert question == "This is a photo of a metal nut for anomaly detection. Is there any anomaly in the image?"
    opening, _, end = detection_question("bottle").partition(", which should be ")
    assert opening == "This is a photo of a bottle for anomaly detection"
    assert end == f"{describe('bottle')}. Is there any anomaly in the image?"
    assert detection_question(None) == "Is there any anomaly in the image?"


def test_names_read_well():
    assert noun_phrase("own_part") == "an own part"
    assert noun_phrase("pushpins") == "pushpins"
    assert noun_phrase("carpet_tiles") == "a carpet"
    assert noun_phrase("metal_nut", "zh") == "金属螺母"


def test_the_generator_varies_the_question():
    rng = np.random.default_rng(0)
    assert len({detection_question("bottle", rng) for _ in range(50)}) > 3


def test_every_known_class_has_its_own_description():
    classes = [name for name in _classes()["names"] if name not in ("macaroni", "pcb")]
    assert len({describe(name) for name in classes}) == len(classes) == 34
    assert describe("carpet_tiles") == describe("carpet")
    assert describe("gearbox") == describe("object") != describe("bottle")
    assert not any(describe(name).endswith(".") for name in classes)


def test_every_known_class_is_named_and_described_in_chinese():
    names = [name for name in _classes()["names"] if name not in ("macaroni", "pcb")]
    assert len({describe(name, "zh") for name in names}) == len(names)
    assert not any(describe(name, "zh").endswith("。") for name in names)
    assert not any(noun_phrase(name, "zh").isascii() for name in names)


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
        (
            "toothbrush",
            "defective",
            "Bristles of the toothbrush are bent, missing or dirty.",
            "牙刷的刷毛弯曲、缺失或有污物。",
        ),
    ],
)
def test_the_sentence_of_a_defect(class_name, defect, english, chinese):
    assert defect_sentence(class_name, defect) == english
    if chinese or not english:
        assert defect_sentence(class_name, defect, "zh") == chinese


def test_every_defect_of_mvtec_has_its_own_sentence():
    sentences = phrase_table("en")["defects"]["classes"]
    assert len(sentences) == 15 and sum(map(len, sentences.values())) == 73


def test_the_kind_is_asked_only_where_it_is_known():
    rng = np.random.default_rng(0)
    kinds = {answer for _ in range(200) for answer in conversation("screw", ["top"], 0.1, rng, True, defect="Bent.")}
    assert any(turn.text == "Bent." for turn in kinds)
    normal = {turn.text for _ in range(200) for turn in conversation("screw", [], 0, rng, True, defect="")}
    assert "There is no defect in the image." in normal
    unknown = {turn.text for _ in range(200) for turn in conversation("screw", ["top"], 0.1, rng, True)}
    assert "What kind of defect is it?" not in unknown


def test_both_languages_have_the_same_keys():
    def keys(tree):
        return {key: keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None

    english, chinese = phrase_table("en"), phrase_table("zh")
    assert chinese.keys() - english.keys() == {"class_names"}
    for part in english.keys() - {"descriptions"}:
        assert keys(english[part]) == keys(chinese[part]), part


def test_an_unknown_language_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="en, zh"):
        detection_question("bottle", language="tlh")
    assert (PHRASES / "classes.yaml").is_file()


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


def test_follow_up_answers_by_hand():
    two = ["top", "left"]
    assert follow_up_answer("where", "bottle", ["top"], 0.01) == "It is at the top of the image."
    assert follow_up_answer("where", "bottle", two, 0.01) == "They are at the top and the left of the image."
    assert follow_up_answer("count", "bottle", two, 0.01) == "There are 2 anomalies in the image."
    assert follow_up_answer("count", "bottle", [], 0) == "There are no anomalies in the image."
    assert follow_up_answer("size", "bottle", ["top"], 0.0234) == "It covers about 2.3 % of the image."
    assert follow_up_answer("size", "bottle", ["top"], 0.0002) == "It covers less than 0.1 % of the image."
    assert follow_up_answer("size", "bottle", two, 0.25) == "Together they cover about 25 % of the image."
    assert follow_up_answer("what", "metal_nut", [], 0) == "The photo shows a metal nut."


@pytest.mark.parametrize("language", ["en", "zh"])
def test_conversations_alternate_and_start_with_the_verdict(language):
    rng = np.random.default_rng(1)
    lengths = set()
    for number in range(300):
        positions = ["center", "top"][: number % 3]
        turns = conversation("screw", positions, 0.05 * bool(positions), rng, True, language)
        lengths.add(len(turns))
        assert [turn.role for turn in turns] == ["human", "assistant"] * (len(turns) // 2)
        assert parse_verdict(turns[1].text) is bool(positions)
        assert not any("{" in turn.text for turn in turns)
    assert lengths == {2, 4, 6}


def test_without_a_generator_the_conversation_is_the_papers():
    turns = conversation("screw", ["top"], 0.05)
    assert [turn.text for turn in turns] == [detection_question("screw"), detection_answer(True, ["top"])]


def test_what_to_do_and_how_many_parts_by_hand():
    assert follow_up_answer("usable", "bottle", [], 0) == "It looks usable, as there is no anomaly in the image."
    assert "checked" in follow_up_answer("usable", "bottle", ["top"], 0.1)
    assert parse_verdict(follow_up_answer("usable", "bottle", ["top"], 0.1)) is None, "yes would mean a defect"
    assert follow_up_answer("parts", "bottle", [], 0) == "There is one part in the photo, a bottle."
    assert follow_up_answer("parts", "candle", [], 0) == "There are 4 parts in the photo."
    assert "surface" in follow_up_answer("parts", "carpet_tiles", [], 0)
    assert parts_shown("capsules") is None and parts_shown("somebody's gear") == 1


def test_the_number_of_parts_is_asked_only_where_it_is_known():
    rng = np.random.default_rng(0)
    asked = {
        name: any("How many parts" in turn.text for _ in range(100) for turn in conversation(name, [], 0, rng, True))
        for name in ("bottle", "capsules")
    }
    assert asked == {"bottle": True, "capsules": False}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_positions_are_read_back_from_the_answers_that_name_them(language):
    for position in GRID:
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


def test_a_mask_marks_the_cells_that_its_pixels_lie_in():
    target = np.zeros((30, 60), dtype=bool)
    target[9:12, 30] = True  # from the last row of pixels of the upper cells into the middle ones
    assert [position for position in GRID if marks_position(target, position)] == ["top", "center"]
    single = np.zeros((10, 10), dtype=bool)
    single[3, 3] = True  # its centre at 3.5 of 10 lies in the second of three cells
    assert [position for position in GRID if marks_position(single, position)] == ["center"]
