"""Reads, answers and scores multiple-choice questions: MMAD's (ICLR 2025), RobustMAD's, VisA-D&R's or your own."""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import pandas as pd
import torch
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, ValidationError

from anomalygpt.config.load import load_config
from anomalygpt.datasets.photos import load_image
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError, first_offenders
from anomalygpt.evaluation import tables
from anomalygpt.evaluation.cells import Cell, Measure, build_predictor, measure_cells
from anomalygpt.files import read_yaml, sha256
from anomalygpt.inference.answers import parse_verdict
from anomalygpt.inference.language_models import PromptedModel
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.anomalygpt import UNNAMED_CLASS
from anomalygpt.model.build import installed_config

WORDING = read_yaml(Path(__file__).with_name("mmad.yaml"))

PHOTOS_PER_CELL = 20
EXPECTED = "expected MMAD's or RobustMAD's file, or a list in the form that docs/evaluation.md shows"
MEANING = "Accuracy in percent beside that of guessing (chance), as docs/evaluation.md defines it."

Letter = Annotated[str, Field(pattern="^[A-Z]$")]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda names: [names] if isinstance(names, str) else names)]


def _named(*aliases: str, **options: Any) -> Any:
    """A field that has one of these names in a file: your own, then MMAD's, then RobustMAD's."""
    return Field(validation_alias=AliasChoices(*aliases), **options)


class Question(BaseModel, frozen=True, coerce_numbers_to_str=True):
    """One question about one photo; ``image`` and ``references`` are paths below the photos' folder."""

    image: str = _named("image", "image_path")
    number: int = _named("question_id", "number")
    question: Annotated[str, AfterValidator(str.strip)] = _named("question", "Question")
    options: dict[Letter, str] = _named("options", "Options", min_length=2)
    answer: str = _named("answer", "Answer")
    task: str = _named("task", "type", "robustness_category", default="questions")
    class_name: str = _named("class", "category", default=UNNAMED_CLASS)
    references: Names = _named("reference", "references", "templates", "reference_image_path", default=())

    @property
    def key(self) -> str:
        """The photo and the question's number; MMAD's are counted within a photo."""
        return f"{self.image}#{self.number}"


def read_questions(path: Path, root: Path, templates: str = "similar", shots: int = 0) -> list[Question]:
    """Reads a file's questions, in MMAD's or RobustMAD's form or as a list; raises UserError, also of absent photos."""
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
    if wrong := [question for question in found if question.answer not in question.options]:
        raise UserError(f"{path}: the answer {wrong[0].answer!r} of {wrong[0].key} is none of its options")
    if few := dict.fromkeys(question.image for question in found if len(question.references) < shots):
        raise UserError(f"{path}: {len(few)} photos have fewer than {shots} references: {first_offenders(few)}")
    photos = dict.fromkeys(name for question in found for name in (question.image, *question.references[:shots]))
    if missing := [name for name in photos if not (root / name).is_file()]:
        absent = f"{len(missing)} of {len(photos)} photos are not there: {first_offenders(missing)}"
        raise UserError(f"{root}: {absent}; --data names the folder that paths start at")
    return found


def _entries(content: Any, templates: str) -> Iterator[dict[str, Any]]:
    """The fields of each question; null means absent."""
    photos: list[tuple[dict[str, Any], Any]] = []
    if isinstance(content, list):
        photos = [({}, content)]
    elif isinstance(content.get("images"), list):
        photos = [(photo, photo["questions"]) for photo in content["images"]]
    else:
        for image, photo in content.items():
            parts = Path(image).parts  # data set / class / …
            about = {"image": image, "class": parts[1] if len(parts) > 2 else None}
            photos.append((about | {"templates": photo.get(f"{templates}_templates")}, photo["conversation"]))
    for about, questions in photos:
        for number, question in enumerate(questions, start=1):
            fields = {"number": number, **about, **question}
            if "metadata" in question and "question" not in question:  # VisA-D&R (Xu et al., CVPR 2025): VisA/class/…
                answer = "A" if question["metadata"]["anomaly"] else "B"
                fields |= WORDING["visa_dr"] | {"class": Path(question["image"]).parts[1], "answer": answer}
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
    letters, text = "".join(options), " ".join(answer.split())
    patterns = (
        rf"^\W*([{letters}])(?=$|[.):,;]|\s*$)",
        rf"(?i:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([{letters}])\b(?!\w)",
        rf"\(([{letters}])\)",
    )
    for pattern in patterns:
        if named := re.search(pattern, text):
            return named[1]
    plain = {letter: option.lower().strip(" .") for letter, option in options.items()}
    held = [letter for letter, option in plain.items() if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text.lower())]
    longest = max(held, key=lambda letter: len(plain[letter]), default="")
    others = [plain[letter] for letter in held if letter != longest]  # "top left" also holds "left"
    if longest and all(other in plain[longest] and other != plain[longest] for other in others):
        return longest
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
    methods: Sequence[str]
    seed: int
    _references: tuple[str, ...] | None = None

    def answer(self, photos: Sequence[Sequence[Question]], on_photo: Callable[[], object]) -> dict[str, Any]:
        """``rows``, one per question: the letter chosen by each method, None for an answer that names no option."""
        rows, own = [], cast(PromptedModel, self.predictor.language_model)  # as answer_questions requires
        for questions in photos:
            first = questions[0]
            references = first.references[: self.shots]
            if references != self._references:
                self.predictor.set_references([load_image(self.root / name) for name in references])
                self._references = references
            result = self.predictor.inspect(load_image(self.root / first.image), first.class_name)
            folders = Path(first.image).parts[:-1]
            about = {"dataset": "".join(folders[:1]), "good": int(WORDING["good_folder"] in folders)}
            found = [about | self._likeliest(own, result, question) for question in questions]
            torch.manual_seed(Cell(self.shots, 0, first.class_name).seed_of(self.seed, first.image))
            if "generated" in self.methods:
                asked = [q.question if q.task == WORDING["visa_dr"]["task"] else with_options(q) for q in questions]
                texts = own.answers([result] * len(questions), asked)
                for row, question, text in zip(found, questions, texts, strict=True):
                    row |= {"generated": parse_choice(text, question.options), "generated_answer": text}
            rows += found
            on_photo()
        return {"rows": rows}

    def _likeliest(self, own: PromptedModel, result: ImageResult, question: Question) -> dict[str, Any]:
        """A question's row, with the letters of the options that are likeliest as texts and as letters."""
        task, options = WORDING["tasks"].get(question.task, question.task), question.options
        row = {"question": question.key, "task": task, "answer": question.answer, "options": len(options)}
        row["yes"] = next((letter for letter, text in options.items() if parse_verdict(text)), "")
        # The full stop is left out: "Yes." is mostly the beginning of "Yes, there is".
        texts = [text.rstrip(" .。") or text for text in options.values()]
        for method, asked, answers in (("text", question.question, texts), ("letter", with_options(question), options)):
            if method in self.methods:
                ids, about = own.ids(result, asked), (result.features, result.prompt_map)
                likelihoods = self.predictor.model.answer_likelihoods(*about, ids, [*answers])
                row[method] = [*options][int(likelihoods.argmax())]
        return row


def task_scores(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Accuracy by each method, a row per task; of MMAD's balanced task the mean over good and anomalous photos."""
    kind = frame["good"].where(frame["task"] == WORDING["balanced_task"], 0)
    return frame.groupby(["task", kind])[list(methods)].mean().groupby("task").mean()


def mmad_average(frame: pd.DataFrame, methods: Sequence[str]) -> pd.Series:
    """Accuracy by each method as MMAD averages: over tasks within each data set, then over data sets."""
    return pd.DataFrame([task_scores(own, methods).mean() for _, own in frame.groupby("dataset")]).mean()


def yes_scores(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of "yes" by each method, 0..1, over the questions with such an option, if any."""
    frame = pd.DataFrame([row for row in rows if row["yes"]], columns=["yes", "answer", *methods])
    is_so, said = frame["answer"] == frame["yes"], frame[[*methods]].eq(frame["yes"], axis=0)
    right, total = said.mul(is_so, axis=0).sum(), said.sum()
    found = {"precision": right / total, "recall": right / is_so.sum(), "F1": 2 * right / (total + is_so.sum())}
    return pd.DataFrame(found).fillna(0.0).to_dict("index") if len(frame) else {}


def report(facts: dict[str, Any], rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """The contents of results.json, .md and answers.csv, by name; ``rows`` as of :meth:`Asker.answer`."""
    frame = pd.DataFrame(rows)
    right = {method: (frame[method] == frame["answer"]).astype(float) for method in methods}
    frame = frame.assign(chance=1 / frame["options"], **right)
    by_task = frame.groupby("task")
    table = pd.DataFrame({"questions": by_task.size(), "chance": by_task["chance"].mean()})
    table = table.join(task_scores(frame, methods))
    table.loc["average"] = [len(rows), frame["chance"].mean(), *mmad_average(frame, methods)]
    table = table.astype({"questions": int}).reset_index(names="task")
    lines = [f"# Multiple choice: {facts['config']}", "", *tables.fact_lines(facts)]
    yes = yes_scores(rows, methods)
    content = {"facts": facts, "tasks": table.to_dict("records"), "yes": yes, "answers": rows}
    for method, scores in yes.items():
        lines.append(f"* yes, by {method}: " + ", ".join(f"{key} {tables.percent(scores[key])}" for key in scores))
    if "generated" in methods:
        content["unclear_answers"] = sum(row["generated"] is None for row in rows)
        lines += [f"* generated answers that name no option: {content['unclear_answers']}"]
    table[["chance", *methods]] = table[["chance", *methods]].map(tables.percent)
    table.iloc[-1, 0] = "**average**"
    return {
        "results.json": content,
        "results.md": "\n".join([*lines, "", *tables.markdown_table(table.astype(str), texts=1), "", MEANING, ""]),
        "answers.csv": pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"),
    }


def answer_questions(arguments: argparse.Namespace) -> None:
    """``run_mmad.py``: answers a file of questions, prints the report, and writes it; raises UserError."""
    config = load_config(arguments.config or installed_config(), arguments.set)
    if config.own_llm is None:
        raise UserError(f"questions need a language model of the model's own; {config.name} has none, or asks another")
    shots, methods, templates = arguments.shots, arguments.answer_by, arguments.templates
    root = arguments.data or arguments.questions.parent
    cells = cells_of(read_questions(arguments.questions, root, templates, shots), shots)
    settings = tables.fingerprint(config, with_llm=True) | {
        "contents of the questions": sha256(arguments.questions),
        "--data": str(root.resolve()),
        "--templates": templates,
        "--answer-by": methods,
    }

    def build(process: Process) -> Measure:
        predictor = build_predictor(config, process, with_llm=True)
        asker = Asker(predictor, root, shots, methods, config.seed)
        return lambda cell, on_photo: asker.answer(cells[cell], on_photo)

    names = {cell: [questions[0].image for questions in photos] for cell, photos in cells.items()}
    process, results = measure_cells(arguments.device, arguments.out, settings, names, build)
    if not results:
        return
    rows = sorted((row for result in results for row in result["rows"]), key=lambda row: row["question"])
    facts = tables.facts_of(config, arguments.command, process, results) | {
        "references": f"the first {shots} of each photo's {templates} templates" if shots else "none; text map",
        "questions": f"{arguments.questions}, {len(rows)} about {sum(map(len, cells.values()))} photos",
    }
    tables.publish(report(facts, rows, methods), arguments.out)
