"""Multiple-choice questions answered, by likelihood and by generation, and counted by task as in MMAD."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch

from anomalygpt.datasets.transforms import load_image
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell, photo_seed
from anomalygpt.evaluation.questions import Question, parse_choice, with_options, wording
from anomalygpt.evaluation.sharing import SAVE_EVERY, Share, Work, measure_shared
from anomalygpt.evaluation.state import State
from anomalygpt.files import replacing
from anomalygpt.inference.predictor import Look, Predictor
from anomalygpt.model.chat import chat_prompt

Method = Literal["text", "letter", "generated"]
METHODS: dict[Method, str] = {
    "text": "likelihood of the text",
    "letter": "likelihood of the letter",
    "generated": "generated",
}


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


@dataclass
class Answers:
    """The answers of some photos' questions."""

    rows: list[Answer] = field(default_factory=list)
    photos: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def names(self) -> set[str]:
        """The photos."""
        return set(self.photos)

    def merge(self, other: "Answers") -> None:
        """Adds other photos."""
        self.rows = sorted([*self.rows, *other.rows], key=lambda row: row.key)
        self.photos = sorted([*self.photos, *other.photos])
        self.seconds += other.seconds

    def write(self, path: Path) -> None:
        """Writes a file, whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Answers":
        """Reads a file back.

        Raises:
            UserError: it is damaged, or none of ours.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls([Answer(**row) for row in found["rows"]], found["photos"], found["seconds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: can't be read ({error}); delete it, its photos are asked again") from error


class Asker:
    """Puts questions to a predictor.

    Args:
        root: the folder that photos' paths start at.
        shots: how many references each photo has.
        methods: by which answers are chosen.
        seed: of sampled answers.
    """

    def __init__(self, predictor: Predictor, root: Path, shots: int, methods: Sequence[Method], seed: int) -> None:
        self.predictor = predictor
        self.root = root
        self.shots = shots
        self.methods = methods
        self.seed = seed
        self._references: tuple[str, ...] | None = None

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers questions about one photo.

        Raises:
            DatasetError: the photo or a reference can't be read.
        """
        photo = load_image(self.root / questions[0].image)
        looks: dict[tuple[tuple[str, ...], str], Look] = {}  # a list may give each question references of its own
        answers = []
        for question in questions:
            references = question.references[: self.shots]
            if (references, question.class_name) not in looks:
                self._remember(references)
                looks[references, question.class_name] = self.predictor.look(photo, question.class_name)
            answers.append(self._answer(looks[references, question.class_name], question))
        return answers

    def _remember(self, references: tuple[str, ...]) -> None:
        if references != self._references:
            self.predictor.set_references([load_image(self.root / name) for name in references])
            self._references = references

    def _answer(self, look: Look, question: Question) -> Answer:
        torch.manual_seed(photo_seed(self.seed, Cell(self.shots, 0, question.class_name), question.key))
        chosen: dict[str, str | None] = {}
        if "text" in self.methods:
            # Whether a full stop follows says nothing of the option: "Yes." is mostly the beginning of "Yes, there is".
            texts = {letter: text.rstrip(" .。") or text for letter, text in question.options.items()}
            chosen["text"] = self._likeliest(look, question.question, texts)
        if "letter" in self.methods:
            letters = {letter: letter for letter in question.options}
            chosen["letter"] = self._likeliest(look, with_options(question), letters)
        generated = ""
        if "generated" in self.methods:
            generated = self.predictor.answer(look, with_options(question))
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

    def _likeliest(self, look: Look, asked: str, options: Mapping[str, str]) -> str:
        text = chat_prompt([], asked)
        found = self.predictor.model.answer_likelihoods(look.features, look.prompt_map, text, list(options.values()))
        return list(options)[int(found.argmax())]


def answer_shared(
    make: Callable[[], Asker],
    questions: Sequence[Question],
    state: State[Answers],
    shots: int,
    share: Share,
    on_photo: Callable[[], object] = lambda: None,
    save_every: float = SAVE_EVERY,
) -> Answers | None:
    """Answers what is not answered yet, by one process or several; None on all processes but the first.

    Args:
        make: makes what asks; not called where this process has nothing to ask.

    Raises:
        UserError: the state is damaged, or of other questions.
        OSError: the state can't be written.
    """
    by_photo: dict[str, list[Question]] = {}
    for question in questions:
        by_photo.setdefault(question.image, []).append(question)
    asker: list[Asker] = []

    def measure(part: Answers, photo: str) -> None:
        rows = asker[0].ask(by_photo[photo])
        part.rows += rows
        part.photos.append(photo)

    work = Work(lambda: asker.append(make()), on_photo, save_every)
    done = measure_shared(state, choices_cell(shots), list(by_photo), share, measure, work)
    if done is not None and sorted(row.key for row in done.rows) != sorted(question.key for question in questions):
        raise UserError(
            f"{state.folder.parent}: holds a run on other questions; name another --out, or delete {state.folder}"
        )
    return done


def choices_cell(shots: int) -> Cell:
    """Where answers are kept."""
    return Cell(shots, 0, "multiple choice")


# -- counting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Accuracy, 0..1, None of no question; ``count`` questions."""

    accuracy: float | None
    count: int


def accuracy(rows: Sequence[Answer], method: str) -> Score:
    """The share of questions whose right option a method chose; none chosen is wrong."""
    right = [row.chosen[method] == row.right for row in rows]
    return Score(sum(right) / len(right) if right else None, len(right))


def balanced(rows: Sequence[Answer], method: str) -> Score:
    """The mean of the accuracies on good and on anomalous photos; None where there are only photos of one kind."""
    kinds = [accuracy([row for row in rows if row.is_good == good], method).accuracy for good in (True, False)]
    known = [value for value in kinds if value is not None]
    return Score(sum(known) / 2 if len(known) == 2 else None, len(rows))


def task_score(rows: Sequence[Answer], task: str, method: str) -> Score:
    """A task's score as MMAD counts it: balanced for anomaly detection."""
    own = [row for row in rows if row.task == task]
    if task == wording()["balanced_task"] and len({row.is_good for row in own}) == 2:
        return balanced(own, method)
    return accuracy(own, method)


def tasks_of(rows: Sequence[Answer]) -> list[str]:
    """The tasks, sorted."""
    return sorted({row.task for row in rows})


def mmad_average(rows: Sequence[Answer], method: str) -> float | None:
    """As MMAD averages: tasks within each data set, then over data sets."""
    means = []
    for dataset in sorted({row.dataset for row in rows}):
        own = [row for row in rows if row.dataset == dataset]
        scores = [task_score(own, task, method).accuracy for task in tasks_of(own)]
        known = [score for score in scores if score is not None]
        means += [sum(known) / len(known)] if known else []
    return sum(means) / len(means) if means else None
