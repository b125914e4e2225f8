"""What answers in words are worth: compared with findings, with masks, and over a real language model."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import GRID
from anomalygpt.datasets.tree import index_tree
from anomalygpt.evaluation.cells import Cell, Plan
from benchmarks import answers
from benchmarks.answers import WordsEvaluator, compare_with_mask, content, marks_position, sample
from tests.evaluation.conftest import RUN, write_class
from tests.fake_predictor import TOP_LEFT, result_with

CELLS = [position for row in GRID for position in row]


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("There is a defect at the top.", "The defect is at the top.", True),
        ("There is a defect at the top.", "There is a defect at the bottom.", False),
        ("There is no defect in the image.", "There is a defect at the top.", False),
        ("Yes, there is no defect.", "No, there is no defect.", False),
        ("It covers 1.2% of the image.", "It covers 12% of the image.", False),
        ("图中有1处缺陷，位于中央。", "中央有1处缺陷。", False),
        ("图中没有缺陷。", "没有缺陷", True),
        ("缺陷在左侧。", "缺陷在右侧。", False),
    ],
)
def test_content_is_words_and_numbers_in_any_order(answer: str, reference: str, same: bool) -> None:
    assert (content(answer) == content(reference)) is same


def test_photos_are_drawn_in_turn_from_bad_and_good_ones(tree) -> None:
    photos = [record for record in index_tree(tree) if record.split == "test"]
    drawn = sample(photos, 3, seed=1)
    assert [photo.is_anomalous for photo in drawn] == [True, False, True]
    assert sample(photos, 9, seed=1)[:3] == drawn and len(sample(photos, 9, seed=1)) == len(photos) == 4
    assert sample(photos[:1], 2, seed=1) == photos[:1]


def test_a_mask_marks_the_cells_that_its_pixels_lie_in():
    target = np.zeros((30, 60), dtype=bool)
    target[9:12, 30] = True  # from the last row of pixels of the upper cells into the middle ones
    assert [position for position in CELLS if marks_position(target, position)] == ["top", "center"]
    single = np.zeros((10, 10), dtype=bool)
    single[3, 3] = True  # its centre at 3.5 of 10 lies in the second of three cells
    assert [position for position in CELLS if marks_position(single, position)] == ["center"]


@pytest.fixture
def marked(tmp_path) -> ImageRecord:
    """A photo of 40 x 30 with two marked defects: 48 pixels at the top left, 4 at the bottom right."""
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[2:8, 2:10] = mask[26:28, 36:38] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    return ImageRecord(tmp_path / "photo.png", "nut", "test", True, "hole", (tmp_path / "mask.png",))


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is it damaged?", "Yes, there are 2 defects, at the top left.", {"verdict": 1, "place": 1, "number": 1}),
        ("Is it damaged?", "No, it is fine.", {"verdict": 0}),
        ("Where is it?", "The defect is at the right.", {"verdict": 1, "place": 0}),
        ("Is it at the top?", "There is no defect at the top; the defect is at the bottom right.", {"place": 1}),
        ("How many?", "There is 1 defect.", {"number": 0}),
        ("How large is it?", "The defect covers 5.0% of the image.", {"size": 1}),
        ("How large is it?", "The defect covers 20% of the image.", {"size": 0}),
        ("有几处？", "图中有2处缺陷。", {"verdict": 1, "number": 1}),
        ("What time is it?", "I can only answer questions about defects in this image.", {}),
    ],
)
def test_statements_are_compared_with_the_mask(marked, question: str, answer: str, expected: dict[str, bool]) -> None:
    found = compare_with_mask(answer, question, marked, result_with(TOP_LEFT, "nut"))
    assert {kind: found[kind] for kind in expected} == expected
    assert set(found) <= {*expected, "verdict"}


def test_statements_about_a_good_photo_are_wrong_where_they_name_a_defect(marked) -> None:
    good = ImageRecord(marked.image, "nut", "test", False, "good")
    image = result_with(TOP_LEFT, "nut")
    found = compare_with_mask("There is 1 defect, at the top left.", "Is it ok?", good, image)
    assert found == {"verdict": False, "place": False, "number": False}
    assert compare_with_mask("There is no defect.", "Is it ok?", good, image) == {"verdict": True}


@pytest.mark.weights
def test_real_answers_are_checked_and_compared(predictor, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(answers, "kinds", lambda language: ["defect", "where", "count"])
    write_class(tmp_path / "plate", 2, 1)
    evaluator = WordsEvaluator(predictor, index_tree(tmp_path), Plan((2,)), tmp_path, photos=1)
    result = evaluator.measure(Cell(2, 0, "plate"))
    assert {one.photo for one in result} == {"plate/test/hole/000.png"}
    assert [(one.language, one.follows) for one in result] == [
        (language, follows) for language in ("en", "zh") for follows in (False, True, False)
    ]
    assert {one.kind for one in result} == {"defect", "where", "count"}
    for one in result:
        assert one.faults == () and 0 < one.first_text <= one.seconds
        assert one.source != "model" or one.raw == one.answer
    assert [one.question for one in evaluator.measure(Cell(2, 0, "plate"))] == [one.question for one in result]
    monkeypatch.setattr(answers, "build_predictor", lambda *_, **__: predictor)
    answers.main(["--data", str(tmp_path), "--shots", "2", "--photos", "1", "--out", str(tmp_path / "run")])
    assert "| en | first | 2 |" in (tmp_path / "run" / "results.md").read_text(encoding="utf-8")
    page = answers.write_report(tmp_path / "out", RUN, result)
    assert "| en | first | 2 |" in page and "| zh | where | 1 |" in page
    assert (tmp_path / "out" / "results.md").read_text(encoding="utf-8") == page
