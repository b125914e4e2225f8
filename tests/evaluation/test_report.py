"""The table and the JSON of two classes whose numbers are known."""

import json

import pytest

from anomalygpt.evaluation.protocol import CategoryResult, PhotoResult
from anomalygpt.evaluation.report import RunFacts, as_markdown, write_report

FACTS = RunFacts("python run_eval.py --x", "compact", "abc123", "squash", "as its photo", 224, 4, 1, "cpu")


def category(name: str, image: float | None, answers: float | None = None) -> CategoryResult:
    photos = tuple(PhotoResult(f"{kind}/0.png", kind == "cut", 0.5, "", None, True) for kind in ("good", "cut"))
    references = tuple(f"good/00{n}.png" for n in range(4, 8))
    return CategoryResult(name, 4, references, "Is there?", photos, image, 0.875, 2, answers, 0, 0.5)


def test_the_table_has_a_row_a_class_and_the_mean_over_classes():
    page = as_markdown(FACTS, [category("bottle", 1.0), category("screw", 0.5)])
    assert "| bottle | 2 | 1 | 100.0 | 87.5 | 50.0 | – |" in page
    assert "| **mean** | 4 | 2 | 75.0 | 87.5 | 50.0 | – |" in page


def test_a_number_that_is_not_defined_is_left_out_of_the_mean():
    page = as_markdown(FACTS, [category("bottle", None), category("screw", 0.5)])
    assert "| bottle | 2 | 1 | – |" in page and "| **mean** | 4 | 2 | 50.0 |" in page


@pytest.mark.parametrize("fact", ["python run_eval.py --x", "compact", "abc123", "squash", "as its photo", "round 1"])
def test_the_page_says_how_it_was_made(fact):
    assert fact in as_markdown(FACTS, [category("bottle", 1.0)])


def test_files_are_written_whole_and_leave_nothing_else(tmp_path):
    data, page = write_report(tmp_path / "new" / "folder", FACTS, [category("bottle", 1.0, 0.5)])
    assert sorted(path.name for path in data.parent.iterdir()) == ["results.json", "results.md"]
    found = json.loads(data.read_text())
    assert found["mean"]["image_auroc"] == 1 and found["mean"]["answer_accuracy"] == 0.5
    assert found["classes"][0]["photos"][1] == {
        "photo": "cut/0.png",
        "is_anomalous": True,
        "score": 0.5,
        "answer": "",
        "said": None,
        "verdict": True,
    }
    assert found["facts"]["commit"] == "abc123" and page.read_text().startswith("# 4-shot: compact")
