"""Multiple-choice questions about photos, MMAD's (Jiang et al., ICLR 2025) or your own: read, answered, scored."""

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
import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from typing_extensions import Self

from anomalygpt.datasets.records import first_offenders
from anomalygpt.datasets.transforms import load_image
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell, photo_seed
from anomalygpt.evaluation.provenance import Provenance
from anomalygpt.evaluation.published import Spread
from anomalygpt.evaluation.tables import latex_table, markdown_table, percent, write_texts
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.inference.predictor import ImageResult, Predictor
from anomalygpt.model.anomalygpt import UNNAMED_CLASS
from anomalygpt.model.chat import chat_prompt

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
    '"similar_templates", "random_templates"}}, or a list of {"image", "question", "options": {"A": …}, "answer"} with '
    'optional "task", "class" and "reference"'
)
MEANING = (
    "Accuracy in percent. By likelihood: the option whose text, or letter, has the highest mean log-likelihood a "
    "token after the question; letters and generated answers are asked with the options listed. A generated answer "
    "that names no option is wrong. Anomaly detection is the mean over good and anomalous photos, the average that "
    "over tasks within each data set and then over data sets, as in MMAD. Chance: what guessing gives."
)


@cache
def wording() -> dict[str, Any]:
    """How questions are put, and what MMAD calls its tasks."""
    return yaml.safe_load(Path(__file__).with_name("mmad.yaml").read_text(encoding="utf-8"))


# -- questions ---------------------------------------------------------------------------------------------------------

Letter = Annotated[str, StringConstraints(pattern="^[A-Z]$")]
Text = Annotated[str, StringConstraints(min_length=1)]


class Question(BaseModel, frozen=True):
    """One question about one photo.

    Attributes:
        key: the photo and the question's number.
        image: below the photos' folder, as the file has it.
        options: by letter.
        answer: the right letter.
        dataset: the first folder of the photo's path, which is the data set in MMAD.
        is_good: whether the photo's path says that it shows a good part.
        references: good photos, below the same folder, all that the file names.
    """

    key: str
    image: str
    question: str
    options: dict[Letter, Text] = Field(min_length=2)
    answer: str
    task: str
    class_name: str
    dataset: str
    is_good: bool
    references: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.answer not in self.options:
            raise ValueError(f"the answer {self.answer!r} is none of the options {', '.join(self.options)}")
        return self


def read_questions(path: Path, root: Path, templates: Templates = "similar", shots: int = 0) -> list[Question]:
    """All questions of a file.

    Args:
        root: the folder that the photos' paths start at.
        templates: which of MMAD's two lists of good photos are the references.
        shots: how many references each question must have.

    Raises:
        UserError: no such file, not of one of the two forms, a photo that is not there, or too few references.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error})") from error
    if not isinstance(content, dict | list):
        raise UserError(f"{path}: {EXPECTED}")
    found = []
    try:
        for number, entry in _mmad(content, templates) if isinstance(content, dict) else enumerate(content, start=1):
            found.append(_question(number, entry))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join([f"{path}: {entry.get('image')}, question {number}", *map(str, fault["loc"])])
        raise UserError(f"{where}: {fault['msg']}; {EXPECTED}") from error
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: question {len(found) + 1} can't be read ({reason}); {EXPECTED}") from error
    if not found:
        raise UserError(f"{path}: no questions; {EXPECTED}")
    few = dict.fromkeys(question.image for question in found if len(question.references) < shots)
    if few:
        raise UserError(f"{path}: {len(few)} photos have fewer than {shots} references: {first_offenders(few)}")
    named = dict.fromkeys(name for question in found for name in (question.image, *question.references[:shots]))
    absent = [name for name in named if not (root / name).is_file()]
    if absent:
        raise UserError(
            f"{root}: {len(absent)} of {len(named)} photos are not there: {first_offenders(absent)}; "
            "--data names the folder that paths start at"
        )
    return found


def _mmad(content: dict[str, Any], templates: Templates) -> Iterator[tuple[int, dict[str, Any]]]:
    """The questions of MMAD's file in the form of a list of one's own, each with its number."""
    for image, entry in content.items():
        parts = Path(image).parts
        about = {"image": image, "class": parts[1] if len(parts) > 2 else UNNAMED_CLASS}  # data set / class / …
        about["references"] = entry.get(f"{templates}_templates")
        for number, asked in enumerate(entry["conversation"], start=1):
            yield number, {**{key.lower(): value for key, value in asked.items()}, **about}


def _question(number: int, entry: dict[str, Any]) -> Question:
    names = ("reference", "references", "template", "templates")
    references = next((entry[name] for name in names if name in entry), None) or ()
    task = str(entry.get("task", entry.get("type")) or "questions")
    folders = Path(entry["image"]).parts[:-1]
    return Question(
        key=f"{entry['image']}#{number}",
        image=entry["image"],
        question=entry["question"].strip(),
        options=entry["options"],
        answer=entry["answer"],
        task=wording()["tasks"].get(task, task),
        class_name=str(entry.get("class", UNNAMED_CLASS)),
        dataset=folders[0] if folders else "",
        is_good=wording()["good_folder"] in folders,
        references=(references,) if isinstance(references, str) else references,
    )


def with_options(question: Question) -> str:
    """A question with its options listed, and how to answer."""
    listed = [wording()["option"].format(letter=letter, text=text) for letter, text in question.options.items()]
    return wording()["with_options"].format(question=question.question, options="\n".join(listed))


def parse_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer chooses; None where it names no option, or several.

    In this order: a letter that the answer begins with or names (``B.``, ``(B)``, ``the answer is B``), one option
    whose text occurs in it, the one option that says the same yes or no. The article in "A scratch" is no letter.
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
    said = parse_verdict(answer)
    same = [letter for letter, option in options.items() if said is not None and parse_verdict(option) == said]
    return same[0] if len(same) == 1 else None


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A question's answers: the letter that each method chose, None where a generated answer names no option.

    ``options`` is how many there were.
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
    """The answers of a cell: of the questions about ``PHOTOS_PER_CELL`` photos."""

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
    """Puts questions to a predictor.

    Attributes:
        root: the folder that photos' paths start at.
        shots: how many references each photo has.
        methods: by which answers are chosen.
        seed: of sampled answers.
    """

    predictor: Predictor
    root: Path
    shots: int
    methods: Sequence[Method]
    seed: int
    _references: tuple[str, ...] | None = None

    def answer(self, photos: Sequence[Sequence[Question]], on_photo: Callable[[], object] = lambda: None) -> Answers:
        """Answers the questions of a cell; errors as of :meth:`ask`."""
        started, rows = time.monotonic(), []
        for questions in photos:
            rows += self.ask(questions)
            on_photo()
        return Answers(tuple(rows), len(photos), time.monotonic() - started)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers questions about one photo.

        Raises:
            DatasetError: the photo or a reference can't be read.
        """
        photo = load_image(self.root / questions[0].image)
        results: dict[
            tuple[tuple[str, ...], str], ImageResult
        ] = {}  # a list may give each question references of its own
        answers = []
        for question in questions:
            references = question.references[: self.shots]
            if (references, question.class_name) not in results:
                if references != self._references:
                    self.predictor.set_references([load_image(self.root / name) for name in references])
                    self._references = references
                results[references, question.class_name] = self.predictor.inspect(photo, question.class_name)
            answers.append(self._answer(results[references, question.class_name], question))
        return answers

    def _answer(self, result: ImageResult, question: Question) -> Answer:
        torch.manual_seed(photo_seed(self.seed, Cell(self.shots, 0, question.class_name), question.key))
        chosen: dict[str, str | None] = {}
        if "text" in self.methods:
            # Whether a full stop follows says nothing of the option: "Yes." is mostly the beginning of "Yes, there is".
            texts = {letter: text.rstrip(" .。") or text for letter, text in question.options.items()}
            chosen["text"] = self._likeliest(result, question.question, texts)
        if "letter" in self.methods:
            letters = {letter: letter for letter in question.options}
            chosen["letter"] = self._likeliest(result, with_options(question), letters)
        generated = ""
        if "generated" in self.methods:
            generated = self.predictor.answer(result, with_options(question))
            chosen["generated"] = parse_choice(generated, question.options)
        return Answer(
            key=question.key,
            dataset=question.dataset,
            task=question.task,
            is_good=question.is_good,
            right=question.answer,
            options=len(question.options),
            chosen=chosen,
            generated=generated,
        )

    def _likeliest(self, result: ImageResult, asked: str, options: Mapping[str, str]) -> str:
        text = chat_prompt([], asked)
        found = self.predictor.model.answer_likelihoods(
            result.features, result.prompt_map, text, list(options.values())
        )
        return list(options)[int(found.argmax())]


# -- scores ------------------------------------------------------------------------------------------------------------


def answers_frame(rows: Sequence[Answer], methods: Sequence[Method]) -> pd.DataFrame:
    """A row per question: data set, task, whether its photo is good, chance, and 1 or 0 for each method."""
    return pd.DataFrame(
        {"dataset": row.dataset, "task": row.task, "is_good": row.is_good, "chance": 1 / row.options}
        | {method: float(row.chosen[method] == row.right) for method in methods}
        for row in rows
    )


def task_scores(frame: pd.DataFrame, methods: Sequence[Method]) -> pd.DataFrame:
    """A row per task, sorted: accuracy by each method, as MMAD counts it: balanced for anomaly detection.

    Balanced is the mean of the accuracies on good and on anomalous photos, where there are photos of both kinds.
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


# -- report ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MmadProvenance(Provenance):
    """How the answers were made; ``questions`` says of which file, and how many."""

    questions: str


def write_report(folder: Path | None, about: MmadProvenance, rows: Sequence[Answer], methods: Sequence[Method]) -> str:
    """Writes results.json, .md, .tex and answers.csv into a folder, each whole or not at all; None writes nothing.

    Args:
        methods: in the order of the columns.

    Returns:
        The page, results.md.

    Raises:
        OSError: the folder can't be written.
    """
    frame = answers_frame(rows, methods)
    by_task = frame.groupby("task")
    scores = task_scores(frame, methods)
    scores.insert(0, "questions", by_task.size())
    scores.insert(1, "chance", by_task["chance"].mean())
    scores.loc["average"] = [len(rows), frame["chance"].mean(), *mmad_average(frame, methods)]
    scores["questions"] = scores["questions"].astype(int)
    unclear = sum("generated" in row.chosen and row.chosen["generated"] is None for row in rows)

    table = scores.reset_index()
    content = {
        "facts": asdict(about),
        "unclear_answers": unclear,
        "tasks": table.to_dict("records"),
        "answers": [asdict(row) for row in rows],
    }
    shares = ["chance", *methods]
    table[shares] = table[shares].map(lambda value: percent(Spread(value)))
    table = table.astype(str).rename(columns=METHODS)
    config = about.config
    latex = latex_table(table, f"Multiple-choice accuracy of {config}, in percent.")
    table.iloc[-1, 0] = "**average**"
    notes = [f"* generated answers that name no option: {unclear}"] if "generated" in methods else []
    lines = [f"# Multiple choice: {config}", "", *about.lines(f"questions: {about.questions}"), *notes, ""]
    page = "\n".join([*lines, *markdown_table(table, texts=1), "", MEANING]) + "\n"
    csv = pd.DataFrame(
        {"question": row.key, "dataset": row.dataset, "task": row.task, "good": int(row.is_good), "answer": row.right}
        | {method: row.chosen[method] for method in methods}
        | {"generated_answer": row.generated}
        for row in rows
    )
    texts = {
        "results.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "results.md": page,
        "results.tex": f"% needs \\usepackage{{booktabs}}\n% {about.command}\n\n{latex}\n",
        "answers.csv": csv.to_csv(index=False, lineterminator="\n"),
    }
    if folder:
        write_texts(folder, texts)
    return page
