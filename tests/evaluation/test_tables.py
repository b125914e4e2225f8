"""Tables of two classes whose numbers are known, and where published numbers may stand beside them."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.evaluation.cells import Cell
from anomalygpt.evaluation.evaluate import summarise
from anomalygpt.evaluation.figures import CASES, Examples, write_sheet
from anomalygpt.evaluation.metrics import PixelCounts
from anomalygpt.evaluation.tables import METRICS, PUBLISHED, official_dataset, report
from anomalygpt.files import write_files
from tests.evaluation.conftest import RUN

ABOUT = {"warning": ["seen"]} | RUN


def row(photo: str, is_anomalous: bool, score: float, **changes: object) -> dict[str, object]:
    scores = {"score": score, "threshold": 0.5, "probability": score}
    verdict = {"verdict": is_anomalous, "verdict_from": "answer", "said": is_anomalous, "own_said": is_anomalous}
    answer = {"answer": "Yes.", "positions": (), "named": ()}
    return {"photo": photo, "defect": "cut", "is_anomalous": is_anomalous, **scores, **verdict, **answer, **changes}


def category(name: str, scores: tuple[float, ...], shots: int = 4, round: int = 0, with_llm: bool = False):
    """A class of one good photo and bad ones with these scores; half of the pairs of pixels are in order."""
    photos = [row(f"{name}/{n}.png", n > 0, score) for n, score in enumerate(scores)]
    counts = PixelCounts()
    counts.add(np.array([[0.1, 0.3, 0.2]], np.float32), np.array([[False, False, True]]))
    cell = {"shots": shots, "round": round, "class": name, "references": ["good/000.png"]}
    return cell | summarise(photos, counts, with_llm)


BOTTLE, SCREW = (0.1, 0.9, 0.8), (0.5, 0.9, 0.1)  # image-AUROC 1 and 1/2


def page_of(*results, dataset: str | None = None) -> str:
    return report(ABOUT, results, dataset)["results.md"]


def test_the_table_has_a_row_per_class_and_the_mean_over_classes_where_defined():
    page = page_of(category("bottle", BOTTLE), category("screw", SCREW))
    assert "| class | photos | with_defect | image_auroc |" in page
    assert "| bottle | 3 | 2 | 100.0 | 100.0 | 100.0 | 50.0 |" in page
    assert "| **mean** | 6 | 4 | 75.0 |" in page
    assert "answer_accuracy |" not in page, "without a language model"
    page = page_of(category("cup", (0.1,)), category("screw", SCREW))
    assert "| cup | 1 | 0 | – |" in page and "| **mean** | 4 | 2 | 50.0 |" in page


def test_rounds_are_given_by_mean_and_standard_deviation_of_the_means_over_classes():
    cells = (("bottle", BOTTLE, 0), ("screw", BOTTLE, 0), ("bottle", BOTTLE, 1), ("screw", SCREW, 1))
    page = page_of(*(category(name, scores, round=number) for name, scores, number in cells))
    assert "Rounds: 0, 1." in page
    assert "| screw | 3 | 2 | 75.0 ± 25.0 |" in page
    assert "| **mean** | 6 | 4 | 87.5 ± 12.5 |" in page


@pytest.mark.parametrize(
    "fact",
    ["python run_eval.py --x", "compact", "abc123", "as in the paper", "seed: 42", "warning: seen"]
    + ["trained on: delta: simulated defects on elsewhere", "data/tree"],
)
def test_the_page_says_how_it_was_made(fact):
    assert fact in page_of(category("bottle", BOTTLE))


def test_files_are_written_whole_and_leave_nothing_else(tmp_path):
    folder = tmp_path / "new" / "folder"
    results = category("bottle", BOTTLE, with_llm=True), category("bottle", SCREW, shots=1)
    write_files(folder, report(ABOUT, results))
    names = ["per_class.csv", "results.json", "results.md"]
    assert sorted(path.name for path in folder.iterdir()) == names
    found = json.loads((folder / "results.json").read_text())
    one, four = found["protocols"]
    assert (one["shots"], four["shots"], four["mean"]["image_auroc"], four["mean"]["answer_accuracy"]) == (1, 4, 1, 1)
    assert four["classes"][0]["rounds"][0]["photos"][1]["photo"] == "bottle/1.png"
    assert found["facts"]["commit"] == "abc123"


def test_chinese_classes_reach_excel_and_figures_without_a_warning(tmp_path, recwarn, caplog, monkeypatch):
    results = [category(name, BOTTLE) for name in ("齿轮", "a $x$ b", "gear")]
    write_files(tmp_path, report(ABOUT, results))
    data = (tmp_path / "per_class.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and "齿轮" in data.decode("utf-8-sig")
    for installed in (fontManager.ttflist, [font for font in fontManager.ttflist if font.name == "DejaVu Sans"]):
        monkeypatch.setattr(fontManager, "ttflist", installed)
        for result in results:
            write_sheet(tmp_path, Cell(4, 0, result["class"]), result, Examples())
    assert len(list(tmp_path.glob("*.png"))) == 3 and not recwarn.list and not caplog.records


def test_csv_has_a_line_per_class_and_round(tmp_path):
    results = category("bottle", BOTTLE), category("screw", SCREW), category("screw", BOTTLE, round=1)
    write_files(tmp_path, report(ABOUT, results))
    lines = list(csv.DictReader((tmp_path / "per_class.csv").open(encoding="utf-8-sig")))
    found = [(line["class"], line["round"], float(line["image_auroc"])) for line in lines]
    assert found == [("bottle", "0", 1), ("screw", "0", 0.5), ("screw", "1", 1)]
    assert lines[0]["answer_accuracy"] == ""


@pytest.mark.parametrize("dataset", ["mvtec", "visa"])
def test_published_numbers_stand_beside_the_official_data_alone(dataset):
    official = PUBLISHED["datasets"][dataset]
    names = [official["classes"][number % len(official["classes"])] for number in range(official["test_photos"])]
    records = [ImageRecord(None, name, "test", False, "good", None) for name in names]
    assert official_dataset(dataset, records) == dataset
    assert official_dataset(dataset, records[:-1]) is None, "a photo is missing"
    assert official_dataset("folder", records) is None
    renamed = [dataclasses.replace(record, class_name=f"{record.class_name}_tiles") for record in records]
    assert official_dataset(dataset, renamed) is None


def test_the_table_of_published_numbers_is_sound():
    rows = PUBLISHED["rows"]
    assert len({(r["dataset"], r["shots"], r["method"]) for r in rows}) == len(rows)
    for entry in rows:
        values = entry.keys() - {"dataset", "shots", "protocol", "method", "source"}
        assert values and values <= {*METRICS}, entry
        assert entry["source"] in PUBLISHED["sources"] and entry["dataset"] in PUBLISHED["datasets"]
        assert all(0 < entry[key][0] < 100 and all(0 <= s < 10 for s in entry[key][1:]) for key in values), entry
    [ours] = [row for row in rows if (row["dataset"], row["shots"], row["method"]) == ("mvtec", 1, "AnomalyGPT")]
    assert (ours["image_auroc"][0], ours["answer_accuracy"][1]) == (94.1, 1.1)


def test_published_numbers_are_printed_with_their_source():
    page = page_of(category("bottle", BOTTLE, with_llm=True), dataset="mvtec")
    assert "Beside published means on MVTec-AD:" in page
    assert "| this run (compact) | few-shot | 100.0 |" in page
    assert "| AnomalyGPT | few-shot | 96.3 ± 0.3 | – |" in page and "arXiv 2308.15366" in page
    assert "WinCLIP" not in page_of(category("bottle", BOTTLE))


def test_the_best_and_the_worst_photos_are_drawn(tmp_path, fake_predictor):
    photos, examples = [], Examples()
    for number in range(6):
        photo = Image.new("RGB", (40, 30), (10 * number,) * 3)
        found = fake_predictor().inspect(photo, "cup")
        is_anomalous = number % 2 == 1
        photos.append(row(f"cup/{number}.png", is_anomalous, found.score, answer="有，位于左上角。" * 30))
        examples.offer(f"cup/{number}.png", is_anomalous, np.eye(30, 40, dtype=bool), found)
    assert {case: [name for _, name, _ in found] for case, found in examples.items()} == dict(
        zip(CASES, [[f"cup/{n}.png" for n in pair] for pair in ((5, 3), (0, 2), (1, 3), (4, 2))], strict=True)
    ), "the darkest have the highest scores"
    write_sheet(tmp_path / "new", Cell(1, 0, "cup/1"), summarise(photos, PixelCounts()), examples)
    assert Image.open(tmp_path / "new" / "cup_1.png").width > 500
