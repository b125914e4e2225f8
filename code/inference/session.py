"""Conversations of several users with one shared model, without a user interface (the web demo is one).

Users only get results of the files of their own conversation, and memory does not grow with the number of users.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageOps

from anomalygpt.datasets.findings import UNKNOWN_CLASS
from anomalygpt.datasets.photos import load_image
from anomalygpt.errors import UserError
from anomalygpt.inference.calibration import ReferenceReport
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult

MAX_REFERENCES = 200
ANSWER_SECONDS = 120  # for one answer
MAX_CACHED = 8  # photos, and as many sets of references: 60 MB each with the compact model, hundreds with ImageBind
SMALLEST_PREVIEW, LARGEST_PREVIEW = 640, 1280  # the longer side of a photo as a page shows it, in pixels
NO_ANSWER = "This model draws maps, but has no language model to answer with: see the map and its verdict."

Maker = Callable[[], Predictor]
Note = Literal["", "corrected", "findings", "contradicts", "stopped", "too_long", "empty"]


@dataclass(frozen=True)
class Exchange:
    question: str
    answer: str
    # ``corrected`` or ``findings``: not the language model's own words (see ``answer_check.Answer``); ``contradicts``:
    # it was not checked, and is against the findings; ``stopped``, ``too_long``: it is not complete; ``empty``: a dash.
    note: Note = ""


class Mark(NamedTuple):
    """A photo that the user called good or bad."""

    photo: Path
    class_name: str
    is_good: bool


Compared = tuple[str, tuple[Path, ...], tuple[Mark, ...]]  # a model's name, references, and marks beside them


@dataclass
class Conversation:
    """The questions about one photo."""

    photo: Path
    references: tuple[Path, ...] = ()  # good photos of the same part, or one file of saved references
    class_name: str = ""  # what the user calls the part, or empty
    marks: tuple[Mark, ...] = ()  # inspected photos that count beside the references, in the order of marking
    model: str = ""  # the name of the model that inspects and answers; empty: the one that is loaded
    exchanges: list[Exchange] = field(default_factory=list)
    is_over: bool = False  # the user went on to another photo
    is_stopped: bool = False  # no more of the current answer is wanted

    @property
    def history(self) -> list[tuple[str, str]]:
        return [(each.question, each.answer) for each in self.exchanges]

    @property
    def inputs(self) -> tuple[Compared, Path, str]:
        """What its result depends on."""
        return (self.model, self.references, self.marks), self.photo, self.class_name


def conversation_about(
    photo: str | None,
    references: Sequence[str],
    class_name: str | None,
    current: Conversation | None = None,
    marks: tuple[Mark, ...] = (),
    model: str = "",
) -> Conversation:
    """The current conversation if it is about these inputs, else a new one; :class:`UserError` for bad ones."""
    if not photo:
        raise UserError("There is no photo yet: upload one, or click an example.")
    if len(references) > MAX_REFERENCES:
        raise UserError(f"{len(references)} good photos are too many: keep {MAX_REFERENCES} at most.")
    name = " ".join((class_name or "").split())
    new = Conversation(Path(photo), tuple(map(Path, references)), name, marks, model)
    return current if current and not current.is_over and current.inputs == new.inputs else new


class SharedModel:
    """A model that serves one conversation at a time, with a cache of the latest photos and references.

    ``new_predictor`` cheaply makes a predictor without references around the model of a ``name``; ``load`` puts the
    model of another name in its place.
    """

    def __init__(self, new_predictor: Maker, name: str = "", load: Callable[[str], Maker] | None = None) -> None:
        self._new_predictor, self._name, self._load = new_predictor, name, load
        self._lock = threading.Lock()
        self._predictor = lru_cache(MAX_CACHED)(self._encode_references)
        self._photo = lru_cache(MAX_CACHED)(self._encode)

    def inspect(self, conversation: Conversation) -> tuple[ImageResult, Image.Image]:
        """The result for the photo, and the photo as a page shows it. Raises :class:`UserError` of a bad file."""
        with self._model(conversation.model):
            return self._photo(*conversation.inputs)

    def learn(self, compared: Compared, target: Path | None = None) -> ReferenceReport:
        """What the references are worth; saved to ``target`` with the marks. Raises :class:`UserError` of a file."""
        with self._model(compared[0]):
            predictor = self._predictor(compared)
            if target:
                predictor.save_references(target)
            report = predictor.report()
        return replace(report, names=tuple(Path(name).name for name in report.names))  # without the server's folders

    def stream(self, conversation: Conversation, question: str) -> Iterator[Exchange]:
        """Yields the growing answer to a question about a photo, and adds it to the conversation.

        It ends when that is over or stopped, and after ``ANSWER_SECONDS``; what was yielded until then is the answer.
        """
        with self._model(conversation.model):
            image, _ = self._photo(*conversation.inputs)
            predictor = self._predictor(conversation.inputs[0])
        pieces = predictor.stream(image, question, conversation.history)
        latest, end = Exchange(question, "", "stopped"), time.monotonic() + ANSWER_SECONDS
        try:
            while not (conversation.is_over or conversation.is_stopped):
                with self._lock:
                    piece = next(pieces)
                latest = Exchange(question, latest.answer + piece, "stopped")
                yield Exchange(question, latest.answer)
                if time.monotonic() > end:
                    latest = Exchange(question, latest.answer, "too_long")
                    break
        except StopIteration as finished:
            answer = finished.value.answer if predictor.language_model else NO_ANSWER
            source, agrees = finished.value.answer_source, finished.value.answer_agrees
            note: Note = source if source != "model" else "" if agrees else "contradicts"
            latest = Exchange(question, answer, note) if answer else Exchange(question, "—", "empty")
        finally:
            pieces.close()
            if latest.answer:
                conversation.exchanges.append(latest)
        yield latest

    @contextmanager
    def _model(self, name: str) -> Iterator[None]:
        """The model of a name for oneself; it is loaded in place of another one."""
        with self._lock:
            if name and name != self._name and self._load:
                self._name, self._new_predictor = "", None  # type: ignore[assignment]
                self._predictor.cache_clear()
                self._photo.cache_clear()
                self._new_predictor, self._name = self._load(name), name
            yield

    def _encode_references(self, compared: Compared) -> Predictor:
        model, references, marks = compared
        if marks:
            before, mark = (model, references, marks[:-1]), marks[-1]
            predictor = self._predictor(before).copy()
            predictor.feedback(self._photo(before, mark.photo, mark.class_name)[0], mark.is_good)
            return predictor
        predictor = self._new_predictor()
        if [path.suffix for path in references] == [".safetensors"]:
            predictor.set_references((), references[0])
        else:
            predictor.set_references([load_image(path) for path in references])
        return predictor

    def _encode(self, compared: Compared, path: Path, part: str) -> tuple[ImageResult, Image.Image]:
        predictor = self._predictor(compared)
        photo = load_image(path, predictor.photo_settings)
        result = predictor.inspect(photo, part or UNKNOWN_CLASS)
        side = min(max(*photo.size, SMALLEST_PREVIEW), LARGEST_PREVIEW)
        return result, ImageOps.contain(photo, (side, side))
