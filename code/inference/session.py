"""Conversations of several users with one shared model, without a user interface (the web demo is one).

A conversation belongs to one user. Encoded photos and references are cached by their files: users only get results of
the files of their own conversation, and memory does not grow with the number of users.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError

if TYPE_CHECKING:
    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.inference.results import ImageResult, Prediction

MAX_REFERENCES = 4
MAX_CACHED = 8  # photos, and as many sets of references: 60 MB each with the compact model, hundreds with ImageBind
NO_ANSWER = "This model draws maps, but has no language model to answer with: see the map and its verdict."


@dataclass
class Conversation:
    """The questions about one photo."""

    photo: Path
    references: tuple[Path, ...] = ()  # good photos of the same part
    class_name: str = ""  # what the user calls the part; "" where the first question names it
    part: str = ""  # what the photo is taken to show; set by the first question
    history: list[tuple[str, str]] = field(default_factory=list)  # (question, answer) pairs
    # The verdict: of the score, or where the language model decides, of its first answer (a "no" to a later "is it
    # large?" is no verdict).
    is_anomalous: bool | None = None
    verdict_source: str = ""  # in words
    is_over: bool = False  # the user went on to another photo


def conversation_about(
    photo: str | None, references: Sequence[str], class_name: str | None, current: Conversation | None = None
) -> Conversation:
    """The current conversation if it is about these inputs, else a new one.

    Raises:
        UserError: there is no photo, or there are too many references.
    """
    if not photo:
        raise UserError("There is no photo yet: upload one, or click an example.")
    if len(references) > MAX_REFERENCES:
        raise UserError(f"{len(references)} good photos are too many: keep {MAX_REFERENCES} at most.")
    inputs = (Path(photo), tuple(map(Path, references)), " ".join((class_name or "").split()))
    if current and not current.is_over and (current.photo, current.references, current.class_name) == inputs:
        return current
    return Conversation(*inputs)


class SharedModel:
    """A model that serves one conversation at a time, with a cache of the latest photos and references.

    Args:
        new_predictor: makes a predictor without references around the model; must be cheap.
    """

    def __init__(self, new_predictor: "Callable[[], Predictor]") -> None:
        self._new_predictor = new_predictor
        self._lock = threading.Lock()
        self._predictor = lru_cache(MAX_CACHED)(self._encode_references)
        self._photo = lru_cache(MAX_CACHED)(self._encode)

    def encode(self, conversation: Conversation, question: str) -> tuple["ImageResult", Image.Image]:
        """Encodes photo and references, unless they are cached.

        Args:
            question: may name the part where the user does not.

        Returns:
            The result for the photo, and the photo with its anomaly map.

        Raises:
            UserError: a file can't be read.
        """
        from anomalygpt.inference.answers import class_in_prompt

        with self._lock:
            predictor = self._predictor(conversation.references)
            if not conversation.part:
                rule = predictor.settings.text_class_rule
                conversation.part = conversation.class_name or class_in_prompt(question, rule)
            image, picture = self._photo(conversation.photo, conversation.references, conversation.part)
            if predictor.score_decides:
                conversation.is_anomalous, conversation.verdict_source = image.is_anomalous, "score"
            return image, picture

    def stream(self, conversation: Conversation, question: str) -> Iterator[str]:
        """Yields the growing answer to a question about an encoded photo, and adds it to the conversation.

        It stops when the conversation is over, or when the iterator is closed; what was yielded until then counts as
        the answer.
        """
        image, _ = self.encode(conversation, question)
        with self._lock:
            predictor = self._predictor(conversation.references)
        pieces, answer = predictor.stream(image, question, conversation.history), ""
        try:
            while not conversation.is_over:
                with self._lock:
                    answer += next(pieces)
                yield answer
        except StopIteration as finished:
            self._conclude(conversation, finished.value)
            answer = finished.value.answer if predictor.language_model else NO_ANSWER
        finally:
            pieces.close()
            if answer:
                conversation.history.append((question, answer))
        yield answer

    @staticmethod
    def _conclude(conversation: Conversation, prediction: "Prediction") -> None:
        """Takes the first answer's verdict where the score does not decide."""
        if conversation.is_anomalous is None:
            conversation.is_anomalous = prediction.is_anomalous
            doubt = "" if prediction.answer_agrees else ", which the score contradicts"
            conversation.verdict_source = prediction.verdict_from + doubt

    def _encode_references(self, references: tuple[Path, ...]) -> "Predictor":
        predictor = self._new_predictor()
        predictor.set_references([_read(path) for path in references])
        return predictor

    def _encode(self, path: Path, references: tuple[Path, ...], part: str) -> tuple["ImageResult", Image.Image]:
        from anomalygpt.inference.visualize import overlay

        photo = _read(path)
        result = self._predictor(references).inspect(photo, part)
        picture = overlay(photo, result.map, result.threshold, result.regions)
        picture.thumbnail((1024, 1024))
        return result, picture


def _read(path: Path) -> Image.Image:
    from anomalygpt.datasets.photos import load_image

    try:
        return load_image(path)
    except DatasetError as error:  # users must not learn the server's folders
        raise UserError(str(error).replace(str(path), path.name)) from error
