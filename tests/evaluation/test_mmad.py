"""Multiple-choice questions: read in both forms, asked of a real small model, counted as in MMAD."""

import csv
import json

import pandas as pd
import pytest
from PIL import Image

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.errors import UserError
from anomalygpt.evaluation.mmad import (
    Asker,
    cells_of,
    mmad_average,
    parse_choice,
    read_questions,
    report,
    task_scores,
    with_options,
    yes_scores,
)
from anomalygpt.inference.predictor import Predictor
from tests.evaluation.conftest import RUN
from tests.model.test_anomalygpt import model  # noqa: F401 (a fixture)

BAD, GOOD = "DS-MVTec/bottle/image/broken/000.png", "DS-MVTec/bottle/image/good/001.png"
SIMILAR, RANDOM = "DS-MVTec/bottle/train/000.png", "DS-MVTec/bottle/train/001.png"
TEMPLATES = {"similar_templates": [SIMILAR], "random_templates": [RANDOM]}
YES_NO = {"A": "Yes.", "B": "No."}
PLACES = {"A": "Top left.", "B": "Left.", "C": "At the bottom right.", "D": "Center."}
MMAD = {
    BAD: {
        "mask_path": "rgb_mask/broken/000.png",
        **TEMPLATES,
        "conversation": [
            {"Question": "Is there any defect?", "Answer": "A", "Options": YES_NO, "type": "Anomaly Detection"},
            {"Question": "Where is it?", "Answer": "C", "Options": PLACES, "type": "Defect Localization"},
            {"Question": "How is it built?", "Answer": "B", "Options": PLACES, "type": "Object Details"},
        ],
    },
    GOOD: {
        **TEMPLATES,
        "conversation": [
            {"Question": "Is there any defect?", "Answer": "B", "Options": YES_NO, "type": "Anomaly Detection"},
            {"Question": "What is it?", "Answer": "A", "Options": PLACES, "type": "Object Structure"},
        ],
    },
}


def write_photos(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 90, 120)).save(root / name)


@pytest.fixture
def mmad(tmp_path):
    """MMAD's file with two photos and two templates."""
    write_photos(tmp_path, BAD, GOOD, SIMILAR, RANDOM)
    (tmp_path / "mmad.json").write_text(json.dumps(MMAD))
    return tmp_path / "mmad.json"


def test_mmads_file_is_read_as_it_is(mmad):
    questions = read_questions(mmad, mmad.parent, "random", shots=1)
    assert [question.key for question in questions] == [f"{BAD}#1", f"{BAD}#2", f"{BAD}#3", f"{GOOD}#1", f"{GOOD}#2"]
    first = questions[0]
    assert (first.class_name, first.answer, first.references) == ("bottle", "A", (RANDOM,))
    assert with_options(first).startswith("Is there any defect?\nA. Yes.\nB. No.\n")


def test_robustmads_file_is_read_as_it_is(tmp_path):
    """The keys are those of RobustMAD_MCQ.json; its low-quality copies lie in a folder below good or the defect."""
    good, low = "MVTec-AD/bottle/test/good/005.png", "VisA/pcb3/test/bad/blur/013_blur.JPG"
    write_photos(tmp_path, good, low)
    about = {"reference_image_path": good, "reference_image_id": "005.png", "difficulty": "general"}
    options = {letter: f"part {letter}" for letter in "ABCDE"}
    asked = {"question_type": "MCQ", "question": "What is the object?", "options": options, "answer": "E"}
    images = [
        {"dataset": name, "category": name_of_class, "image_path": path, **about}
        | {"questions": [{"question_id": number, "robustness_category": category, **asked}]}
        for name, name_of_class, path, number, category in (
            ("MVTec-AD", "bottle", good, 1, "General Object Understanding"),
            ("VisA", "pcb3", low, 12, "Unanswerable or Misleading Query Detection"),
        )
    ]
    (tmp_path / "RobustMAD_MCQ.json").write_text(json.dumps({"images": images}))
    first, last = read_questions(tmp_path / "RobustMAD_MCQ.json", tmp_path, shots=1)
    assert (first.key, first.class_name, first.references) == (f"{good}#1", "bottle", (good,))
    assert (last.key, last.task, last.answer) == (f"{low}#12", "Unanswerable or Misleading Query Detection", "E")
    del images[0]["questions"]
    (tmp_path / "RobustMAD_MCQ.json").write_text(json.dumps({"images": images}))
    with pytest.raises(UserError, match="question 1 can't be read .*questions"):
        read_questions(tmp_path / "RobustMAD_MCQ.json", tmp_path)


def test_the_detection_questions_of_visa_d_and_r_are_read(tmp_path):
    """A list of photos with a label each, and LLaVA's conversations, whose answers are judged by others."""
    names = ("VisA/pcb3/test/bad/013.JPG", "VisA/candle/test/good/0001.JPG")
    write_photos(tmp_path, *names)
    turns = [{"from": "human", "value": "<image>\nWhat is wrong?"}, {"from": "gpt", "value": "A scratch."}]
    photos = [
        {"id": f"{number}", "image": name, "metadata": {"anomaly": is_bad}, "conversations": turns}
        for number, (name, is_bad) in enumerate(zip(names, (True, False), strict=True))
    ]
    (tmp_path / "test_data.json").write_text(json.dumps(photos))
    bad, good = read_questions(tmp_path / "test_data.json", tmp_path)
    found = [(question.class_name, question.options[question.answer]) for question in (bad, good)]
    assert found == [("pcb3", "Yes"), ("candle", "No")]
    assert bad.question.endswith("Please reply with 'Yes' or 'No'.") and bad.task == good.task == "VisA-D&R"
    del photos[1]["metadata"]["anomaly"]
    (tmp_path / "test_data.json").write_text(json.dumps(photos))
    with pytest.raises(UserError, match="question 2 can't be read .*anomaly"):
        read_questions(tmp_path / "test_data.json", tmp_path)


def test_precision_and_recall_of_yes_are_over_the_questions_with_such_an_option():
    rows = [answer(), answer(chosen="B"), answer(right="B"), answer(right="B", chosen=None), answer() | {"yes": ""}]
    assert yes_scores(rows, ["text"]) == {"text": {"precision": 0.5, "recall": 0.5, "F1": 0.5}}
    assert yes_scores([answer(chosen=None)], ["text"]) == {"text": {"precision": 0, "recall": 0, "F1": 0}}
    assert yes_scores(rows[-1:], ["text"]) == {}


def test_a_list_of_ones_own_is_read(tmp_path):
    write_photos(tmp_path, "a.png", "good.png")
    record = {"image": "a.png", "question": "Is it good?", "options": YES_NO, "answer": "B", "task": "verdict"}
    entries = [record, {**record, "reference": "good.png", "class": "cup", "metadata": {"line": 3}}]
    (tmp_path / "own.json").write_text(json.dumps(entries))
    plain, referred = read_questions(tmp_path / "own.json", tmp_path)
    assert (plain.task, plain.class_name, plain.references) == ("verdict", "object", ())
    assert (referred.class_name, referred.references) == ("cup", ("good.png",))
    with pytest.raises(UserError, match=r"1 photos have fewer than 1 references: a.png"):
        read_questions(tmp_path / "own.json", tmp_path, shots=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read .JSONDecodeError"),
        ("3", "expected MMAD's"),
        ("[]", "no questions"),
        ('{"a.png": {"conversation": 1}}', "question 1 can't be read"),
        ('[{"question": "?"}]', "question 1.image can't be read .Field required"),
        (
            '[{"image": "a.png", "question": "?", "options": {"A": "x"}, "answer": "A"}]',
            "1.options can't be read .* at least 2",
        ),
        ('[{"image": "a.png", "question": "?", "options": {"A": "x", "2": "y"}, "answer": "A"}]', "1.options.2"),
        (
            '[{"image": "a.png", "question": "?", "options": {"A": "x", "B": "y"}, "answer": "C"}]',
            "answer 'C' of a.png#1 is none",
        ),
        ('[{"image": "b.png", "question": "?", "options": {"A": "x", "B": "y"}, "answer": "A"}]', "not there: b.png"),
    ],
)
def test_an_invalid_file_is_reported_in_one_line(tmp_path, text, message):
    write_photos(tmp_path, "a.png")
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_questions(tmp_path / "file.json", tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="no such file"):
        read_questions(tmp_path / "absent.json", tmp_path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        ("(D) Center", "D"),
        ("The answer is B.", "B"),
        ("Answer: C", "C"),
        ("I would choose option D here.", "D"),
        ("It lies at the top left.", "A"),
        ("It lies at the left.", "B"),
        ("In the center, or at the left.", None),
        ("A scratch at the bottom right", "C"),
        ("A scratch, in the middle.", None),
        ("E.", None),
        ("", None),
    ],
)
def test_an_answer_chooses_a_letter_or_an_options_text(answer, expected):
    assert parse_choice(answer, PLACES) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Yes, at the top.", "A"), ("No, there is none.", "B"), ("None of it.", None), ("Not sure", None)],
)
def test_yes_and_no_choose_the_option_that_says_so(answer, expected):
    assert parse_choice(answer, {"A": "Yes, there is a defect", "B": "No, it looks good"}) == expected


def answers_frame(rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    return frame.assign(chance=0.25, text=(frame["text"] == frame["answer"]).astype(float))


def answer(key="a#1", right="A", chosen="A", task="t", good=False, dataset="d") -> dict[str, object]:
    about = {"question": key, "dataset": dataset, "task": task, "good": int(good), "answer": right, "options": 4}
    return about | {"yes": "A", "text": chosen}


def test_anomaly_detection_is_balanced_and_the_average_is_over_tasks_then_data_sets():
    def score(rows):
        return task_scores(answers_frame(rows), ["text"])["text"]["Anomaly Detection"]

    detection = [answer(task="Anomaly Detection", good=True, chosen="B")]  # 0 of 1 good ones right
    detection += [answer(task="Anomaly Detection")] * 9  # all anomalous ones
    assert score(detection) == 0.5
    assert score(detection[1:]) == 1, "nothing to balance"
    rows = [*detection, answer(task="x"), answer(task="x", dataset="e"), answer(task="y", dataset="e", chosen=None)]
    average = mmad_average(answers_frame(rows), ["text"])["text"]
    assert average == pytest.approx(((0.5 + 1) / 2 + (1 + 0) / 2) / 2)


@pytest.fixture
def asker(model, mmad):  # noqa: F811
    """Makes an asker with the real predictor around a small random model."""
    predictor = Predictor(model, generation=GenerationSettings(max_new_tokens=4))

    def make(shots=0, methods=("text", "letter", "generated")):
        return Asker(predictor, mmad.parent, shots, methods, seed=0)

    return make


def test_a_model_answers_by_likelihood_and_by_generation(mmad, asker):
    questions = read_questions(mmad, mmad.parent, shots=1)
    found = asker(shots=1).answer([questions[:3]], print)["rows"]
    assert [row["question"] for row in found] == [question.key for question in questions[:3]]
    assert all({"text", "letter", "generated", "generated_answer"} < row.keys() for row in found)
    assert all(row["text"] in question.options for row, question in zip(found, questions, strict=False))
    assert asker(shots=1).answer([questions[:3]], print)["rows"] == found, "each photo has a seed of its own"


def test_each_question_has_the_references_and_the_class_that_it_names(mmad, asker, monkeypatch):
    question = read_questions(mmad, mmad.parent, shots=1)[0]
    changes = ({}, {"references": (RANDOM,)}, {"class_name": "nut"}, {})
    asked = [question.model_copy(update=change) for change in changes]
    seen = []
    predictor = asker().predictor
    remember, inspect = predictor.set_references, predictor.inspect
    monkeypatch.setattr(predictor, "set_references", lambda photos: (seen.append("new"), remember(photos))[1])
    monkeypatch.setattr(predictor, "inspect", lambda photo, name: (seen.append(name), inspect(photo, name))[1])
    [cell] = cells_of(asked, 1).values()
    rows = asker(shots=1, methods=("text",)).answer(cell, print)["rows"]
    assert seen == ["new", "bottle", "new", "bottle", "new", "nut"]
    assert len(rows) == 4 and rows[0] == rows[1]


def test_the_likelier_option_is_chosen_whatever_its_letter(mmad, asker):
    (question, *_) = read_questions(mmad, mmad.parent)
    turned = question.model_copy(update={"options": {"A": "No.", "B": "Yes."}})
    text = asker(methods=("text",))
    one, other = (text.answer([[one]], print)["rows"][0]["text"] for one in (question, turned))
    assert {one, other} == {"A", "B"}


def test_visa_d_and_rs_question_is_put_as_it_is(mmad, asker, monkeypatch):
    (question, *_) = read_questions(mmad, mmad.parent)
    ask, put = asker(methods=("generated",)), []
    answers = ask.predictor.language_model.answers
    monkeypatch.setattr(ask.predictor.language_model, "answers", lambda *given: put.extend(given[1]) or answers(*given))
    ask.answer([[question, question.model_copy(update={"task": "VisA-D&R"})]], print)
    assert put == [with_options(question), question.question]


def test_cells_hold_all_questions_about_a_photo_in_the_order_of_the_file(mmad, asker):
    questions = read_questions(mmad, mmad.parent)
    many = [question.model_copy(update={"image": f"{n}.png"}) for n in range(45) for question in questions[:2]]
    cells = list(cells_of(many, 1).values())
    assert [len(photos) for photos in cells] == [20, 20, 5]
    assert [question for photos in cells for photo in photos for question in photo] == many
    done = []
    [photos] = cells_of(questions, 0).values()
    answers = asker(methods=("text",)).answer(photos, lambda: done.append(1))
    assert [row["question"] for row in answers["rows"]] == [question.key for question in questions]
    kinds = [(row["dataset"], row["good"]) for row in answers["rows"]]
    assert kinds == [("DS-MVTec", False)] * 3 + [("DS-MVTec", True)] * 2
    assert len(done) == 2
    assert answers["rows"][-1]["task"] == "Object Analysis", "structure and details are one task in MMAD"


def test_the_report_has_a_row_per_task_with_chance_beside_it():
    rows = (answer("a#1", task="x_1"), answer("a#2", task="y", chosen="B"))
    texts = report(RUN, rows, ["text"])
    page = texts["results.md"]
    assert "| x_1 | 1 | 25.0 | 100.0 |" in page and "| y | 1 | 25.0 | 0.0 |" in page
    assert "| **average** | 2 | 25.0 | 50.0 |" in page and "* data: data/tree" in page
    assert "* yes, by text: precision 100.0, recall 50.0, F1 66.7" in page
    assert [line["text"] for line in csv.DictReader(texts["answers.csv"].splitlines())] == ["A", "B"]
    found = texts["results.json"]
    assert found["tasks"][0] == {"task": "x_1", "questions": 1, "chance": 0.25, "text": 1.0}
    assert found["facts"] == RUN


@pytest.mark.weights
@pytest.mark.data
def test_the_compact_model_tells_good_bottles_from_broken_ones_by_likelihood(predictor, bottle_folder, tmp_path):
    """MMAD's form, real photos, real weights: better than guessing, with one good bottle as reference."""
    root = bottle_folder.parent.parent
    options = {"A": "Yes, there is an anomaly in the image.", "B": "No, there is no anomaly in the image."}
    reference = min((bottle_folder / "train" / "good").iterdir()).relative_to(root).as_posix()
    asked = {"Question": detection_question("bottle", with_description=False), "type": "Anomaly Detection"}
    entries = {}
    for kind, right in (("broken_large", "A"), ("good", "B")):
        conversation = [{**asked, "Options": options, "Answer": right}]
        for path in sorted((bottle_folder / "test" / kind).iterdir())[:2]:
            about = {"similar_templates": [reference], "conversation": conversation}
            entries[path.relative_to(root).as_posix()] = about
    (tmp_path / "mmad.json").write_text(json.dumps(entries))
    questions = read_questions(tmp_path / "mmad.json", root, shots=1)
    asker = Asker(predictor, root, 1, ("text",), 0)
    [photos] = cells_of(questions, 1).values()
    rows = asker.answer(photos, print)["rows"]
    assert task_scores(answers_frame(rows), ["text"])["text"]["Anomaly Detection"] > 0.5
    [row] = Asker(predictor, root, 1, ("letter", "generated"), 0).answer([questions[:1]], print)["rows"]
    assert row["letter"] in options and row["generated_answer"]
