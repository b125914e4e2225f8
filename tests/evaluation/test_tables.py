"""Tables of two classes whose numbers are known, and where published numbers may stand beside them."""

import csv
import dataclasses
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.evaluation.cells import PhotoResult
from anomalygpt.evaluation.evaluate import summarise
from anomalygpt.evaluation.figures import CASES, Examples, write_pictures
from anomalygpt.evaluation.pixels import PixelCounts
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.evaluation.provenance import EvalProvenance
from anomalygpt.evaluation.published import METRICS, _table, official_dataset, published, title
from anomalygpt.evaluation.tables import (
    Report,
    as_csv,
    as_latex,
    as_markdown,
    latex_text,
    write_report,
)

ABOUT = EvalProvenance(
    command="python run_eval.py --x",
    config="compact",
    commit="abc123",
    data="data/tree (mvtec), 2 classes",
    references="as in the paper",
    maps=("squash; as its photo",),
    defects="connected",
    seed=42,
    device="cpu",
    processes=1,
    trained_on=("delta: simulated defects on elsewhere",),
    warnings=("seen before",),
    seconds_per_photo=0.5,
    peak_memory=10**9,
)


def row(photo: str, is_anomalous: bool, score: float, **changes: object) -> PhotoResult:
    said = is_anomalous
    found = PhotoResult(
        photo, "cut", is_anomalous, True, score, 0.5, score, said, "answer", "Yes.", said, said, (), (), None
    )
    return dataclasses.replace(found, **changes)


def category(name: str, scores: tuple[float, ...], shots: int = 4, round: int = 0, with_llm: bool = False):
    """A class of one good photo and bad ones with these scores; half of the pairs of pixels are in order."""
    photos = [row(f"{name}/{n}.png", n > 0, score) for n, score in enumerate(scores)]
    counts = PixelCounts()
    counts.add(np.array([[0.1, 0.3, 0.2]], np.float32), np.array([[False, False, True]]))
    cell = Cell(shots, round, name)
    return summarise(cell, ("good/000.png",), photos, counts, Examples(), "squash", with_llm=with_llm)


BOTTLE, SCREW = (0.1, 0.9, 0.8), (0.5, 0.9, 0.1)  # image-AUROC 1 and 1/2


def report(*results, **more) -> Report:
    return Report(ABOUT, results, **more)


def test_the_table_has_a_row_a_class_and_the_mean_over_classes():
    page = as_markdown(report(category("bottle", BOTTLE), category("screw", SCREW)))
    assert "| class | photos | with a defect | image-AUROC |" in page
    assert "| bottle | 3 | 2 | 100.0 | 100.0 | 100.0 | 50.0 |" in page
    assert "| **mean** | 6 | 4 | 75.0 |" in page
    assert "answer accuracy |" not in page, "nothing was asked"


def test_what_one_threshold_for_all_classes_could_reach_is_told():
    apart, above = category("bottle", (0.1, 0.3, 0.3)), category("screw", (0.4, 0.6, 0.6))
    page = as_markdown(report(apart, above))
    assert "together, in hindsight: 83.3 (mean over classes)." in page  # at .1 one good photo of the screws is wrong


def test_rounds_are_given_by_mean_and_standard_deviation_of_the_means_over_classes():
    results = [category(name, BOTTLE, round=0) for name in ("bottle", "screw")]
    results += [category("bottle", BOTTLE, round=1), category("screw", SCREW, round=1)]
    page = as_markdown(report(*results))
    assert "2 rounds: 0, 1." in page
    assert "| screw | 3 | 2 | 75.0 ± 25.0 |" in page
    assert "| **mean** | 6 | 4 | 87.5 ± 12.5 |" in page


def test_a_number_that_is_not_defined_is_left_out_of_the_mean():
    page = as_markdown(report(category("cup", (0.1,)), category("screw", SCREW)))
    assert "| cup | 1 | 0 | – |" in page and "| **mean** | 4 | 2 | 50.0 |" in page


@pytest.mark.parametrize(
    "fact",
    ["python run_eval.py --x", "compact", "abc123", "as its photo", "as in the paper", "seed 42", "connected"]
    + ["elsewhere", "**seen before**", "0.50 s a photo", "1.00 GB", "data/tree", "pixel metrics are exact"],
)
def test_the_page_says_how_it_was_made(fact):
    assert fact in as_markdown(report(category("bottle", BOTTLE)))


def test_files_are_written_whole_and_leave_nothing_else(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_report(folder, report(category("bottle", BOTTLE, with_llm=True), category("bottle", SCREW, shots=1)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "per_class.csv",
        "results.json",
        "results.md",
        "results.tex",
    ]
    found = json.loads((folder / "results.json").read_text())
    one, four = found["protocols"]
    assert (one["shots"], four["shots"], four["mean"]["image_auroc"], four["mean"]["answer_accuracy"]) == (1, 4, 1, 1)
    assert four["classes"][0]["rounds"][0]["photos"][1]["photo"] == "bottle/1.png"
    assert found["facts"]["commit"] == "abc123"


def test_csv_has_a_line_a_class_and_round():
    text = as_csv(report(category("bottle", BOTTLE), category("screw", SCREW), category("screw", BOTTLE, round=1)))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["class"], line["round"], float(line["image_auroc"])) for line in lines] == [
        ("bottle", "0", 1),
        ("screw", "0", 0.5),
        ("screw", "1", 1),
    ]
    assert lines[0]["answer_accuracy"] == "" and float(lines[0]["pixel_auroc_bound"]) == 0


def test_latex_escapes_names_and_has_as_many_cells_as_columns():
    text = as_latex(report(category("metal_nut & 100%", BOTTLE)))
    assert r"metal\_nut \& 100\%" in text
    assert latex_text("a\\b~c") == r"a\textbackslash{}b\textasciitilde{}c"
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = table[1 : table.index("}")]
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert rows and all(line.replace(r"\&", "").count("&") == len(columns) - 1 for line in rows)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path):
    table = as_latex(report(category("metal_nut", BOTTLE), published={4: published("mvtec", 4)}, dataset="MVTec-AD"))
    page = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{table}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page)
    subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=True, capture_output=True)


def official(dataset: str) -> list[ImageRecord]:
    """Records of the official classes, as many test photos as there are officially."""
    facts = _table()["datasets"][dataset]
    names = [facts["classes"][number % len(facts["classes"])] for number in range(facts["test_photos"])]
    return [ImageRecord(None, name, "test", False, "good", None) for name in names]


@pytest.mark.parametrize("dataset", ["mvtec", "visa"])
def test_published_numbers_stand_beside_the_official_data_alone(dataset):
    records = official(dataset)
    assert official_dataset(dataset, records) == dataset
    assert official_dataset(dataset, records[:-1]) is None, "a photo is missing"
    assert official_dataset("folder", records) is None
    renamed = [dataclasses.replace(record, class_name=f"{record.class_name}_tiles") for record in records]
    assert official_dataset(dataset, renamed) is None


def test_the_table_of_published_numbers_is_sound():
    rows = _table()["rows"]
    assert len({(r["dataset"], r["shots"], r["method"]) for r in rows}) == len(rows)
    for entry in rows:
        values = entry.keys() - {"dataset", "shots", "protocol", "method", "source"}
        assert values and values <= METRICS.keys(), entry
        assert entry["source"] in _table()["sources"] and entry["dataset"] in _table()["datasets"]
        assert all(0 < entry[key][0] < 100 and all(0 <= s < 10 for s in entry[key][1:]) for key in values), entry
    [ours] = [found for found in published("mvtec", 1) if found.method == "AnomalyGPT"]
    assert (ours.metrics["image_auroc"].mean, ours.metrics["answer_accuracy"].std) == pytest.approx((0.941, 0.011))


def test_published_numbers_are_printed_with_their_source():
    others = {4: published("mvtec", 4)}
    page = as_markdown(report(category("bottle", BOTTLE, with_llm=True), published=others, dataset=title("mvtec")))
    assert "Beside published means on MVTec-AD:" in page
    assert "| this run (compact) | few-shot | 100.0 |" in page
    assert "| AnomalyGPT | few-shot | 96.3 ± 0.3 | – |" in page and "arXiv 2308.15366" in page
    assert "WinCLIP" not in as_markdown(report(category("bottle", BOTTLE)))
    assert r"96.3 $\pm$ 0.3" in as_latex(report(category("bottle", BOTTLE), published=others, dataset="MVTec-AD"))


def test_pictures_are_written_of_the_first_round(tmp_path, fake_predictor):
    photos, examples = [], Examples()
    for number in range(6):
        photo = Image.new("RGB", (40, 30), (10 * number,) * 3)
        found = fake_predictor().inspect(photo, "cup")
        is_anomalous = number % 2 == 1
        photos.append(row(f"cup/{number}.png", is_anomalous, found.score, answer="有，位于左上角。" * 30))
        examples.offer(f"cup/{number}.png", is_anomalous, photo, np.eye(30, 40, dtype=bool), found)
    result = summarise(Cell(1, 0, "cup/1"), (), photos, PixelCounts(), examples, "squash")
    assert {case: [name for name, _ in found] for case, found in result.examples.items()} == dict(
        zip(CASES, [[f"cup/{n}.png" for n in pair] for pair in ((5, 3), (0, 2), (1, 3), (4, 2))], strict=True)
    ), "the darkest have the highest scores"
    written = write_pictures(tmp_path, [result])
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "cases_1-shot/cup_1.png",
        "curves_1-shot.png",
    ]
    assert all(Image.open(path).width > 500 for path in written)
