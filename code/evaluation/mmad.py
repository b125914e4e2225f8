"""Reads, answers and scores multiple-choice questions about photos: MMAD's (ICLR 2025), RobustMAD's or your own."""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, ValidationError, model_validator
from typing_extensions import Self

from anomalygpt.config.load import load_config
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import first_offenders
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.evaluation.cells import Measure, build_predictor, measure_cells
from anomalygpt.evaluation.protocol import Cell, photo_seed
from anomalygpt.evaluation.provenance import fact_lines, facts_of, fingerprint
from anomalygpt.evaluation.tables import markdown_table, percent, publish
from anomalygpt.files import read_yaml, sha256
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.anomalygpt import UNNAMED_CLASS
from anomalygpt.model.build import installed_config

WORDING = read_yaml(Path(__file__).with_name("mmad.yaml"))

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
MEANING = "Accuracy in percent beside that of guessing (chance), as docs/evaluation.md defines it."

Letter = Annotated[str, Field(pattern="^[A-Z]$")]
Text = Annotated[str, Field(min_length=1)]


def _named(*aliases: str, default: Any = ...) -> Any:
    """A field that has one of these names in a file: your own, then MMAD's, then RobustMAD's."""
    return Field(default, validation_alias=AliasChoices(*aliases))


class Question(BaseModel, frozen=True, coerce_numbers_to_str=True):
    """One question about one photo.

    Attributes:
        image: path below the photos' folder, as in the file.
        number: of the question; MMAD's are counted within a photo.
        references: good photos, below the same folder, all that the file names.
    """

    image: str = _named("image", "image_path")
    number: int = _named("question_id", "number")
    question: Annotated[str, AfterValidator(str.strip)] = _named("question", "Question")
    options: Annotated[dict[Letter, Text], Field(min_length=2)] = _named("options", "Options")
    answer: str = _named("answer", "Answer")
    task: Annotated[str, AfterValidator(lambda task: WORDING["tasks"].get(task, task))] = _named(
        "task", "type", "robustness_category", default="questions"
    )
    class_name: str = _named("class", "category", default=UNNAMED_CLASS)
    references: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = _named(
        "reference", "references", "template", "templates", "reference_image_path", default=()
    )

    @property
    def key(self) -> str:
        """The photo and the question's number."""
        return f"{self.image}#{self.number}"

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
    found: list[Question] = []
    try:
        for entry in _entries(json.loads(path.read_text(encoding="utf-8")), templates):
            found.append(Question.model_validate(entry))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": repr(error)}
        where = ".".join(map(str, (len(found) + 1, *fault["loc"])))
        raise UserError(f"{path}: question {where} can't be read ({fault['msg']}); {EXPECTED}") from error
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


def _entries(content: Any, templates: Templates) -> Iterator[dict[str, Any]]:
    """The fields of each question; null means absent."""
    if isinstance(content, list):
        photos = [({}, content)]
    elif isinstance(content.get("images"), list):
        photos = [(photo, photo["questions"]) for photo in content["images"]]
    else:
        photos = []
        for image, photo in content.items():
            parts = Path(image).parts  # data set / class / …
            about = {"image": image, "class": parts[1] if len(parts) > 2 else None}
            photos.append((about | {"templates": photo.get(f"{templates}_templates")}, photo["conversation"]))
    for about, questions in photos:
        for number, question in enumerate(questions, start=1):
            fields = {"number": number, **about, **question}
            yield {key: value for key, value in fields.items() if value is not None}


def with_options(question: Question) -> str:
    """A question with its options listed, and how to answer."""
    listed = [WORDING["option"].format(letter=letter, text=text) for letter, text in question.options.items()]
    return WORDING["with_options"].format(question=question.question, options="\n".join(listed))


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


def cells_of(questions: Sequence[Question], shots: int) -> dict[Cell, list[list[Question]]]:
    """The questions by cell of ``PHOTOS_PER_CELL`` photos, within it by photo with its class and references."""
    photos: dict[Any, list[Question]] = {}
    for question in questions:
        photos.setdefault((question.image, question.class_name, question.references), []).append(question)
    listed = list(photos.values())
    starts = range(0, len(listed), PHOTOS_PER_CELL)
    return {Cell(shots, 0, f"photos from {start}"): listed[start : start + PHOTOS_PER_CELL] for start in starts}


@dataclass
class Asker:
    """Asks a predictor questions about photos below ``root``, with ``shots`` references each."""

    predictor: Predictor
    root: Path
    shots: int
    methods: Sequence[Method]
    seed: int
    _references: tuple[str, ...] | None = None

    def answer(
        self, photos: Sequence[Sequence[Question]], on_photo: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """Answers the questions of a cell: ``rows`` as of :meth:`ask`, and the time in ``seconds``."""
        started, rows = time.monotonic(), []
        for questions in photos:
            rows += self.ask(questions)
            on_photo()
        return {"rows": rows, "seconds": time.monotonic() - started}

    def ask(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """Answers questions about one photo of one class and with the same references.

        Returns:
            Of each question its key, data set and task, whether its photo is good, the right letter, the number of
            options, the letter chosen by each method, None where a generated answer names no option, and that answer.

        Raises:
            DatasetError: the photo or a reference can't be read.
        """
        first = questions[0]
        references = first.references[: self.shots]
        if references != self._references:
            self.predictor.set_references([load_image(self.root / name) for name in references])
            self._references = references
        result = self.predictor.inspect(load_image(self.root / first.image), first.class_name)
        answers = []
        for question in questions:
            torch.manual_seed(photo_seed(self.seed, Cell(self.shots, 0, question.class_name), question.key))
            folders = Path(question.image).parts[:-1]
            about = {
                "question": question.key,
                "dataset": "".join(folders[:1]),
                "task": question.task,
                "good": int(WORDING["good_folder"] in folders),
                "answer": question.answer,
                "options": len(question.options),
            }
            answers.append(about | self._choices(result, question))
        return answers

    def _choices(self, result: ImageResult, question: Question) -> dict[str, str | None]:
        def likeliest(text: str, options: Mapping[str, str]) -> str:
            prompt, continuations = self.predictor.prompt(result, text), list(options.values())
            model = self.predictor.model
            found = model.answer_likelihoods(result.features, result.prompt_map, prompt, continuations)
            return list(options)[int(found.argmax())]

        chosen: dict[str, str | None] = {}
        listed = with_options(question)
        if "text" in self.methods:
            # The full stop is left out: "Yes." is mostly the beginning of "Yes, there is".
            texts = {letter: text.rstrip(" .。") or text for letter, text in question.options.items()}
            chosen["text"] = likeliest(question.question, texts)
        if "letter" in self.methods:
            chosen["letter"] = likeliest(listed, {letter: letter for letter in question.options})
        if "generated" in self.methods:
            generated = self.predictor.answer(result, listed)
            chosen |= {"generated": parse_choice(generated, question.options), "generated_answer": generated}
        return chosen


def answers_frame(rows: Sequence[dict[str, Any]], methods: Sequence[Method]) -> pd.DataFrame:
    """The answers with the chance of guessing, and 1 or 0 for each method."""
    frame = pd.DataFrame(rows)
    right = {method: (frame[method] == frame["answer"]).astype(float) for method in methods}
    return frame.assign(chance=1 / frame["options"], **right)


def task_scores(frame: pd.DataFrame, methods: Sequence[Method]) -> pd.DataFrame:
    """A row per task, sorted: accuracy by each method.

    As in MMAD, anomaly detection is the mean of the accuracies on good and on anomalous photos, where there are both.
    """
    scores = frame.groupby("task")[list(methods)].mean()
    balanced = WORDING["balanced_task"]
    if balanced in scores.index:
        by_kind = frame[frame["task"] == balanced].groupby("good")[list(methods)].mean()
        scores.loc[balanced] = by_kind.mean()
    return scores


def mmad_average(frame: pd.DataFrame, methods: Sequence[Method]) -> pd.Series:
    """Accuracy by each method as MMAD averages: over tasks within each data set, then over data sets."""
    return pd.DataFrame([task_scores(own, methods).mean() for _, own in frame.groupby("dataset")]).mean()


def report(facts: dict[str, Any], rows: Sequence[dict[str, Any]], methods: Sequence[Method]) -> dict[str, str]:
    """The texts of results.json, .md and answers.csv, by name; ``rows`` as of :meth:`Asker.ask`."""
    frame = answers_frame(rows, methods)
    by_task = frame.groupby("task")
    table = pd.DataFrame({"questions": by_task.size(), "chance": by_task["chance"].mean()})
    table = table.join(task_scores(frame, methods))
    table.loc["average"] = [len(rows), frame["chance"].mean(), *mmad_average(frame, methods)]
    table = table.astype({"questions": int}).reset_index(names="task")
    lines = [f"# Multiple choice: {facts['config']}", "", *fact_lines(facts)]
    content = {"facts": facts, "tasks": table.to_dict("records"), "answers": rows}
    if "generated" in methods:
        content["unclear_answers"] = sum(row["generated"] is None for row in rows)
        lines += [f"* generated answers that name no option: {content['unclear_answers']}"]
    fractions = ["chance", *methods]
    table[fractions] = table[fractions].map(percent)
    table = table.astype(str).rename(columns=METHODS)
    table.iloc[-1, 0] = "**average**"
    return {
        "results.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "results.md": "\n".join([*lines, "", *markdown_table(table, texts=1), "", MEANING]) + "\n",
        "answers.csv": pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"),
    }


def answer_questions(arguments: argparse.Namespace) -> None:
    """``run_mmad.py``: answers a file of questions, prints the report, and writes it.

    Raises:
        UserError: the questions can't be read or asked.
    """
    config = load_config(arguments.config or installed_config(), arguments.set)
    if config.own_llm is None:
        raise UserError(f"questions need a language model of the model's own; {config.name} has none, or asks another")
    shots, methods = arguments.shots, arguments.answer_by
    root = arguments.data or arguments.questions.parent
    cells = cells_of(read_questions(arguments.questions, root, arguments.templates, shots), shots)
    seed = config.seed if arguments.seed is None else arguments.seed
    settings = fingerprint(config, with_llm=True) | {
        "contents of the questions": sha256(arguments.questions),
        "--data": str(root.resolve()),
        "--templates": arguments.templates,
        "--answer-by": methods,
        "--seed": seed,
    }

    def build(process: Process) -> Measure:
        predictor = build_predictor(config, process, with_llm=True, needs_text_map=not shots)
        asker = Asker(predictor, root, shots, methods, seed)
        return lambda cell, on_photo: asker.answer(cells[cell], on_photo)

    names = {cell: [questions[0].image for questions in photos] for cell, photos in cells.items()}
    process, results = measure_cells(arguments.device, arguments.out, settings, names, build)
    if not results:
        return
    rows = sorted((row for result in results for row in result["rows"]), key=lambda row: row["question"])
    references = f"the first {shots} of each photo's {arguments.templates} templates" if shots else "none; text map"
    facts = facts_of(config, arguments.command, process, seed, results) | {
        "references": references,
        "notes": [f"questions: {arguments.questions}, {len(rows)} about {sum(map(len, cells.values()))} photos"],
    }
    publish(report(facts, rows, methods), arguments.out)
