"""Reads, answers and scores multiple-choice questions about photos: MMAD's (ICLR 2025), RobustMAD's or your own."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import first_offenders
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell, photo_seed
from anomalygpt.evaluation.provenance import Provenance
from anomalygpt.evaluation.published import Spread
from anomalygpt.evaluation.tables import markdown_table, percent, write_texts
from anomalygpt.files import read_yaml
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.anomalygpt import UNNAMED_CLASS

Templates = Literal["similar", "random"]
Method = Literal["text", "letter", "generated"]
METHODS: dict[Method, str] = {
    "text": "likelihood of the text",
    "letter": "likelihood of the letter",
    "generated": "generated",
}
PHOTOS_PER_CELL = 20
EXPECTED = (
    'expected MMAD\'s {"image path": {"conversation": [{"Question", "Options", "Answer", "type"}], '
    '"similar_templates", "random_templates"}}, RobustMAD\'s {"images": [{"image_path", "questions", …}]}, or a list '
    'of {"image", "question", "options": {"A": …}, "answer"} with optional "task", "class" and "reference"'
)
MEANING = (
    "Accuracy in percent. By likelihood: the option with the highest mean log-likelihood per token after the question, "
    "of its text or of its letter. For letters and generated answers the prompt lists the options. A generated answer "
    "that names no option is wrong. Anomaly detection is the mean over good and anomalous photos; the average is over "
    "tasks within each data set, then over data sets, as in MMAD. Chance: expected accuracy of guessing."
)


@cache
def wording() -> dict[str, Any]:
    """How questions are worded, and the names of MMAD's tasks."""
    return read_yaml(Path(__file__).with_name("mmad.yaml"))


Letter = Annotated[str, Field(pattern="^[A-Z]$")]
Text = Annotated[str, Field(min_length=1)]


class Question(BaseModel, frozen=True, coerce_numbers_to_str=True):
    """One question about one photo.

    Attributes:
        image: path below the photos' folder, as in the file.
        number: of the question; MMAD's are counted within a photo.
        references: good photos, below the same folder, all that the file names.
    """

    image: str
    number: int
    question: Annotated[str, AfterValidator(str.strip)]
    options: dict[Letter, Text] = Field(min_length=2)
    answer: str
    task: Annotated[str, AfterValidator(lambda task: wording()["tasks"].get(task, task))] = Field(
        "questions", validation_alias=AliasChoices("task", "type")
    )
    class_name: str = Field(UNNAMED_CLASS, validation_alias="class")
    references: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        (), validation_alias=AliasChoices("reference", "references", "template", "templates")
    )

    @property
    def key(self) -> str:
        """The photo and the question's number."""
        return f"{self.image}#{self.number}"

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the photo's path; the first one names the data set."""
        return Path(self.image).parts[:-1]

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {', '.join(self.options)}")
        return self


def read_questions(path: Path, root: Path, templates: Templates = "similar", shots: int = 0) -> list[Question]:
    """Reads all questions of a file, in MMAD's or RobustMAD's form or as a list.

    Args:
        root: the folder that the photos' paths start at.
        templates: which of MMAD's two lists of good photos are the references.
        shots: how many references each question must have.

    Raises:
        UserError: the file or a photo is missing, the file has another form, or there are too few references.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(content, dict | list):
        raise UserError(f"{path}: {EXPECTED}")
    found: list[Question] = []
    try:
        for entry in _entries(content, templates):
            found.append(Question.model_validate(entry))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join([f"{path}: {entry.get('image')}, question {entry['number']}", *map(str, fault["loc"])])
        raise UserError(f"{where}: {fault['msg']}; {EXPECTED}") from error
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: question {len(found) + 1} can't be read ({reason}); {EXPECTED}") from error
    if not found:
        raise UserError(f"{path}: no questions; {EXPECTED}")
    few = dict.fromkeys(question.image for question in found if len(question.references) < shots)
    if few:
        raise UserError(f"{path}: {len(few)} photos have fewer than {shots} references: {first_offenders(few)}")
    photos = dict.fromkeys(name for question in found for name in (question.image, *question.references[:shots]))
    missing = [name for name in photos if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(photos)} photos are not there: {first_offenders(missing)}; "
            "--data names the folder that paths start at"
        )
    return found


def _entries(content: dict[str, Any] | list[Any], templates: Templates) -> Iterator[dict[str, Any]]:
    """The fields of each question; null means absent."""
    if isinstance(content, list):
        for number, entry in enumerate(content, start=1):
            yield {key: value for key, value in entry.items() if value is not None} | {"number": number}
        return
    if isinstance(content.get("images"), list):
        for entry in content["images"]:
            about = {"image": entry["image_path"], "class": entry["category"]}
            about["reference"] = entry["reference_image_path"]
            for question in entry["questions"]:
                yield {**question, **about, "task": question["robustness_category"], "number": question["question_id"]}
        return
    for image, entry in content.items():
        parts, references = Path(image).parts, entry.get(f"{templates}_templates") or ()  # data set / class / …
        about = {"image": image, "class": parts[1] if len(parts) > 2 else UNNAMED_CLASS, "references": references}
        for number, question in enumerate(entry["conversation"], start=1):
            yield {**{key.lower(): value for key, value in question.items()}, **about, "number": number}


def with_options(question: Question) -> str:
    """A question with its options listed, and how to answer."""
    listed = [wording()["option"].format(letter=letter, text=text) for letter, text in question.options.items()]
    return wording()["with_options"].format(question=question.question, options="\n".join(listed))


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chooses; None where it names no option, or several.

    In this order: a letter that the answer begins with or names (``B.``, ``(B)``, ``the answer is B``), the one option
    whose text occurs in it, the one option with the same yes or no. The article in "A scratch" is no letter.
    """
    letters = "".join(options)
    text = " ".join(answer.split())
    patterns = (
        rf"^\W*([{letters}])(?=$|[.):,;]|\s*$)",
        rf"(?i:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([{letters}])\b(?!\w)",
        rf"\(([{letters}])\)",
    )
    for pattern in patterns:
        named = re.search(pattern, text)
        if named:
            return named.group(1)
    plain = {letter: option.lower().strip(" .") for letter, option in options.items()}
    held = [letter for letter, option in plain.items() if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text.lower())]
    if len(held) > 1:  # "top left" also holds "left"
        longest = max(held, key=lambda letter: len(plain[letter]))
        others = [plain[letter] for letter in held if letter != longest]
        held = [longest] if all(other in plain[longest] and other != plain[longest] for other in others) else []
    if held:
        return held[0]
    verdict = parse_verdict(answer)
    same = [letter for letter, option in options.items() if verdict is not None and parse_verdict(option) == verdict]
    return same[0] if len(same) == 1 else None


@dataclass(frozen=True)
class Answer:
    """The answers to one question.

    Attributes:
        options: number of options.
        chosen: the letter chosen by each method, None where a generated answer names no option.
    """

    key: str
    dataset: str
    task: str
    is_good: bool
    right: str
    options: int
    chosen: dict[str, str | None]
    generated: str


@dataclass(frozen=True)
class Answers:
    """The answers of a cell: all questions about ``PHOTOS_PER_CELL`` photos."""

    rows: tuple[Answer, ...]
    photos: int
    seconds: float


def cells_of(questions: Sequence[Question], shots: int) -> dict[Cell, list[list[Question]]]:
    """The questions by cell, and within it by photo, in the order of their file."""
    by_photo: dict[str, list[Question]] = {}
    for question in questions:
        by_photo.setdefault(question.image, []).append(question)
    photos = list(by_photo.values())
    return {
        Cell(shots, 0, f"photos from {start}"): photos[start : start + PHOTOS_PER_CELL]
        for start in range(0, len(photos), PHOTOS_PER_CELL)
    }


@dataclass
class Asker:
    """Asks a predictor questions about photos below ``root``, with ``shots`` references each."""

    predictor: Predictor
    root: Path
    shots: int
    methods: Sequence[Method]
    seed: int
    _references: tuple[str, ...] | None = None

    def answer(self, photos: Sequence[Sequence[Question]], on_photo: Callable[[], object] = lambda: None) -> Answers:
        """Answers the questions of a cell; raises as :meth:`ask`."""
        started, rows = time.monotonic(), []
        for questions in photos:
            rows += self.ask(questions)
            on_photo()
        return Answers(tuple(rows), len(photos), time.monotonic() - started)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers questions about one photo; raises DatasetError where it or a reference can't be read."""
        photo = load_image(self.root / questions[0].image)
        results: dict[tuple[tuple[str, ...], str], ImageResult] = {}  # references and class may differ by question
        answers = []
        for question in questions:
            references = question.references[: self.shots]
            key = references, question.class_name
            if key not in results:
                if references != self._references:
                    self.predictor.set_references([load_image(self.root / name) for name in references])
                    self._references = references
                results[key] = self.predictor.inspect(photo, question.class_name)
            answers.append(self._answer(results[key], question))
        return answers

    def _answer(self, result: ImageResult, question: Question) -> Answer:
        torch.manual_seed(photo_seed(self.seed, Cell(self.shots, 0, question.class_name), question.key))

        def likeliest(text: str, options: Mapping[str, str]) -> str:
            prompt, continuations = self.predictor.prompt(result, text), list(options.values())
            model = self.predictor.model
            found = model.answer_likelihoods(result.features, result.prompt_map, prompt, continuations)
            return list(options)[int(found.argmax())]

        chosen: dict[str, str | None] = {}
        generated, listed = "", with_options(question)
        if "text" in self.methods:
            # The full stop is left out: "Yes." is mostly the beginning of "Yes, there is".
            texts = {letter: text.rstrip(" .。") or text for letter, text in question.options.items()}
            chosen["text"] = likeliest(question.question, texts)
        if "letter" in self.methods:
            chosen["letter"] = likeliest(listed, {letter: letter for letter in question.options})
        if "generated" in self.methods:
            generated = self.predictor.answer(result, listed)
            chosen["generated"] = parse_choice(generated, question.options)
        return Answer(
            key=question.key,
            dataset="".join(question.folders[:1]),
            task=question.task,
            is_good=wording()["good_folder"] in question.folders,
            right=question.answer,
            options=len(question.options),
            chosen=chosen,
            generated=generated,
        )


def answers_frame(rows: Sequence[Answer], methods: Sequence[Method]) -> pd.DataFrame:
    """A row per question: data set, task, whether its photo is good, chance, and 1 or 0 for each method."""
    return pd.DataFrame(
        {"dataset": row.dataset, "task": row.task, "is_good": row.is_good, "chance": 1 / row.options}
        | {method: float(row.chosen[method] == row.right) for method in methods}
        for row in rows
    )


def task_scores(frame: pd.DataFrame, methods: Sequence[Method]) -> pd.DataFrame:
    """A row per task, sorted: accuracy by each method.

    As in MMAD, anomaly detection is the mean of the accuracies on good and on anomalous photos, where there are both.
    """
    scores = frame.groupby("task")[list(methods)].mean()
    balanced = wording()["balanced_task"]
    if balanced in scores.index:
        by_kind = frame[frame["task"] == balanced].groupby("is_good")[list(methods)].mean()
        scores.loc[balanced] = by_kind.mean()
    return scores


def mmad_average(frame: pd.DataFrame, methods: Sequence[Method]) -> pd.Series:
    """Accuracy by each method as MMAD averages: over tasks within each data set, then over data sets."""
    return pd.DataFrame([task_scores(own, methods).mean() for _, own in frame.groupby("dataset")]).mean()


def write_report(folder: Path | None, about: Provenance, rows: Sequence[Answer], methods: Sequence[Method]) -> str:
    """Writes results.json, .md and answers.csv into a folder, if there is one; returns results.md's content."""
    frame = answers_frame(rows, methods)
    by_task = frame.groupby("task")
    scores = task_scores(frame, methods)
    scores.insert(0, "questions", by_task.size())
    scores.insert(1, "chance", by_task["chance"].mean())
    scores.loc["average"] = [len(rows), frame["chance"].mean(), *mmad_average(frame, methods)]
    table = scores.astype({"questions": int}).reset_index()
    unclear = sum("generated" in row.chosen and row.chosen["generated"] is None for row in rows)
    content = {
        "facts": asdict(about),
        "unclear_answers": unclear,
        "tasks": table.to_dict("records"),
        "answers": [asdict(row) for row in rows],
    }
    fractions = ["chance", *methods]
    table[fractions] = table[fractions].map(lambda value: percent(Spread(value)))
    table = table.astype(str).rename(columns=METHODS)
    table.iloc[-1, 0] = "**average**"
    lines = [f"# Multiple choice: {about.config}", "", *about.lines()]
    lines += [f"* generated answers that name no option: {unclear}"] if "generated" in methods else []
    page = "\n".join([*lines, "", *markdown_table(table, texts=1), "", MEANING]) + "\n"
    csv = pd.DataFrame(
        {"question": row.key, "dataset": row.dataset, "task": row.task, "good": int(row.is_good), "answer": row.right}
        | {method: row.chosen[method] for method in methods}
        | {"generated_answer": row.generated}
        for row in rows
    )
    if folder:
        texts = {
            "results.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
            "results.md": page,
            "answers.csv": csv.to_csv(index=False, lineterminator="\n"),
        }
        write_texts(folder, texts)
    return page
