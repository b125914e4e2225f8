"""What is measured of maps and answers that are known."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.tree import index_tree
from anomalygpt.evaluation.cells import Cell, Plan
from anomalygpt.evaluation.evaluate import summarise
from anomalygpt.evaluation.metrics import PixelCounts

ZERO = Cell(0, 0, "bottle")


def test_a_map_of_the_defect_is_perfect(evaluator, fake_predictor):
    metrics = evaluator(fake_predictor()).measure(ZERO)["metrics"]
    assert metrics.pop("false_alarm_rate") == 0
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))


def test_an_inverted_map_is_as_wrong_as_can_be(evaluator, fake_predictor):
    def inverted(dark):
        return (1 - dark) * (1 - dark.max())  # the darker the darkest pixel, the lower the photo's score

    assert evaluator(fake_predictor(inverted)).measure(ZERO)["metrics"]["image_auroc"] == 0
    pixels = evaluator(fake_predictor(lambda dark: 1 - dark)).measure(ZERO)["metrics"]
    assert (pixels["pixel_auroc"], pixels["aupro"]) == (pytest.approx(0), pytest.approx(0))


def test_the_references_of_the_round_reach_the_predictor_and_zero_shot_removes_them(evaluator, fake_predictor, tree):
    predictor = fake_predictor()
    found = evaluator(predictor, plan=Plan((2,), 2)).measure(Cell(2, 1, "bottle"))
    assert found["references"] == ["bottle/train/good/004.png", "bottle/train/good/005.png"]
    expected = [Image.open(tree / name) for name in found["references"]]
    assert all(np.array_equal(a, b) for a, b in zip(predictor.references, expected, strict=True))
    evaluator(predictor).measure(ZERO)
    assert predictor.references == []
    assert set(predictor.questions) == {detection_question("bottle", with_description=False)}, "the users' question"


def test_a_silent_answer_is_wrong_but_leaves_the_verdict_to_the_score(evaluator, fake_predictor):
    found = evaluator(fake_predictor(words=lambda is_dark: "Nothing comes to mind.")).measure(ZERO)
    assert (found["metrics"]["answer_accuracy"], found["no_verdict"], found["metrics"]["verdict_accuracy"]) == (0, 4, 1)
    assert found["metrics"]["position_accuracy"] is None, "nobody said yes"


@pytest.mark.parametrize(
    ("place", "right"), [("at the center", 1), ("at the top left", 0), ("at the bottom", 0), ("somewhere", 0)]
)
def test_a_position_is_right_by_the_defects_centre(evaluator, fake_predictor, place, right):
    # The square's centre lies in the middle ninth; pixels 8 to 10 of 32 reach into the top left one.
    found = evaluator(fake_predictor(words=lambda is_dark: f"Yes, {place}." if is_dark else "No.")).measure(ZERO)
    assert found["placed"] == 2
    assert found["metrics"]["position_accuracy"] == right


def test_without_chat_answers_are_not_counted(evaluator, fake_predictor):
    found = evaluator(fake_predictor(words=lambda is_dark: ""), with_llm=False).measure(ZERO)
    assert found["metrics"]["answer_accuracy"] is None and found["metrics"]["position_accuracy"] is None
    assert (found["metrics"]["image_auroc"], found["metrics"]["verdict_accuracy"]) == (1, 1)


def test_a_defect_without_a_mask_counts_for_the_image_only(evaluator, fake_predictor, tree):
    records = [
        dataclasses.replace(record, masks=()) if record.image.match("hole/001.png") else record
        for record in index_tree(tree)
    ]
    found = evaluator(fake_predictor(), records=records).measure(ZERO)
    assert (len(found["photos"]), found["masked_photos"], found["regions"]) == (4, 3, 1)
    assert found["metrics"]["pixel_auroc"] == pytest.approx(1)


def test_recall_is_of_the_anomalous_and_false_alarms_of_the_good():
    def row(is_anomalous: bool, verdict: bool) -> dict[str, object]:
        names = ("photo", "said", "own_said", "positions", "named")
        return {**dict.fromkeys(names), "is_anomalous": is_anomalous, "verdict": verdict, "score": 0, "probability": 0}

    verdicts = [(True, True), (True, False), (False, True), (False, False), (False, False)]
    for pairs, expected in ((verdicts, (0.6, 0.5, 1 / 3)), (verdicts[-1:], (1, None, 0)), (verdicts[:1], (1, 1, None))):
        found = summarise([row(*pair) | {"photo": n} for n, pair in enumerate(pairs)], PixelCounts())["metrics"]
        assert tuple(found[key] for key in ("verdict_accuracy", "recall", "false_alarm_rate")) == expected


def test_a_sheet_is_drawn_of_the_first_round_alone(evaluator, fake_predictor, tmp_path):
    measure = evaluator(fake_predictor(), plan=Plan((0, 2), 2), pictures=tmp_path).measure
    measure(Cell(2, 1, "bottle"))
    assert not list(tmp_path.glob("cases*"))
    measure(ZERO)
    measure(Cell(2, 0, "bottle"))
    drawn = sorted(path.parent.name for path in tmp_path.glob("cases*/bottle.png"))
    assert drawn == ["cases_2-shot", "cases_zero-shot"]
