"""Photos from requests; parts, references that are saved in a folder and used by name; the model's one thread."""

import re
from base64 import b64decode
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException
from PIL import Image

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import collected_warnings
from anomalygpt.inference.predictor import Predictor, with_result
from anomalygpt.inference.references import SUFFIX, saved_photo_settings
from anomalygpt.inference.results import ImageResult, Prediction

NO_PART = "default"  # photos are compared with the text features
NAME = r"^\w[\w .\-]{0,59}$"
MAX_LOADED = 8  # parts: 60 MB each with the compact model, hundreds with ImageBind
BATCH = 8  # photos in one pass of the encoder


def from_data_uri(uri: str) -> bytes:
    """The content of a base64 data URI. Raises HTTPException (400) for anything else: nothing is fetched."""
    with suppress(ValueError):
        if found := re.match(r"data:[^,]{0,100};base64,", uri):
            return b64decode(uri[found.end() :], validate=True)
    text = f"{uri[:60]!r} is not fetched: send the photo itself in base64, as in data:image/png;base64,iVBOR…"
    raise HTTPException(400, text)


def read_photo(data: bytes, name: str, settings: PhotoSettings | None = None) -> Image.Image:
    """Decodes a photo from its file's bytes; ``info["source"]`` is its name, ``info["warnings"]`` is how it was read.

    ``settings``: see ``photos.load_image``. Raises HTTPException (422) if it can't be read.
    """
    with NamedTemporaryFile(prefix="photo_") as file:
        file.write(data)
        file.flush()
        try:
            with collected_warnings() as warnings:
                photo = load_image(Path(file.name), settings)
        except DatasetError as error:
            text = str(error).replace(file.name, name).replace(Path(file.name).name, name)
            raise HTTPException(422, text) from None
    photo.info = {"source": name, "warnings": [each.replace(file.name, name) for each in warnings]}
    return photo


class Parts:
    """The parts in a folder, one file of saved references each. Only the model's thread may load, teach or delete.

    The ``predictor`` has no references; others with the same model are made from it.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self._without_references = folder, predictor
        self._loaded: dict[tuple[Path, int], Predictor] = {}  # by file and when it was written

    def names(self) -> list[str]:
        """The names of all parts, sorted."""
        names = (path.stem for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if name != NO_PART and re.fullmatch(NAME, name))

    def _path(self, name: str, *, exists: bool = True) -> Path:
        path = self.folder / (name + SUFFIX)
        if exists and not path.is_file():
            raise HTTPException(404, f"no part {name!r}: teach it by PUT /v1/parts/NAME, or use {NO_PART!r}")
        return path

    def photo_settings(self, name: str) -> PhotoSettings | None:
        """How photos of a part are read: as its references were; None: as the server's settings say."""
        return None if name == NO_PART else saved_photo_settings(self._path(name))

    def predictor(self, name: str) -> Predictor:
        """The predictor with a part's references."""
        if name == NO_PART:
            return self._without_references
        path = self._path(name)
        predictor = self._loaded.get((path, path.stat().st_mtime_ns))
        if predictor is None:
            predictor = self._without_references.without_references()
            predictor.set_references((), path)
        self._keep(path, predictor)
        return predictor

    def _keep(self, path: Path, predictor: Predictor) -> None:
        """Keeps a part that its file holds, too, and drops those that were not used for longest."""
        key = path, path.stat().st_mtime_ns
        self._loaded.pop(key, None)
        self._loaded = dict(list(self._loaded.items())[1 - MAX_LOADED :]) | {key: predictor}

    def teach(self, name: str, photos: Sequence[Image.Image]) -> dict[str, Any]:
        """Encodes and saves good photos in place of what the part was before; returns what :meth:`describe` does."""
        if name == NO_PART:
            raise HTTPException(400, f"{NO_PART!r} can't name a part: it stands for none")
        path, predictor = self._path(name, exists=False), self._without_references.without_references()
        predictor.set_references(photos)
        predictor.save_references(path)
        self._keep(path, predictor)
        return self.describe(name) | {"warnings": [each for photo in photos for each in photo.info["warnings"]]}

    def correct(self, name: str, photo: Image.Image | None, good: bool | None = None) -> dict[str, Any]:
        """Counts a photo as good or bad, or by None as neither, from now on; without a photo withdraws all that."""
        path, predictor = self._path(name), self.predictor(name).copy()  # a full disk leaves the part as it was
        if photo:
            predictor.feedback(predictor.inspect(photo), good)
        else:
            predictor.forget_feedback()
        predictor.save_references(path)
        self._keep(path, predictor)
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        """A part's name, its number of references, and what they are worth, in lines for people."""
        report = self.predictor(name).report()
        return {"name": name, "references": len(report.names), "report": report.lines()}

    def forget(self, name: str) -> None:
        """Deletes a part and its file."""
        self._path(name).unlink()


class ModelThread:
    """Runs what needs the model, in the order in which it came; answers take turns piece by piece."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.photos, self.batches = parts, 0, 0  # that many were inspected so far
        self._executor = ThreadPoolExecutor(1, "model")
        self._waiting: list[SimpleNamespace] = []  # photos; those with the same key are inspected together

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call in the thread."""
        return self._executor.submit(function, *arguments).result()

    def inspect(self, part: str, class_name: str, photo: Image.Image) -> ImageResult:
        """The result of a photo, compared with a part's references."""
        self._waiting.append(job := SimpleNamespace(key=(part, class_name), photo=photo, found=Future()))
        self.run(self._inspect_oldest)  # that one or an earlier call takes this photo
        return job.found.result()

    def _inspect_oldest(self) -> None:
        """Inspects the photo that waits longest, if any, with others like it."""
        batch = [job for job in self._waiting if job.key == self._waiting[0].key][:BATCH]
        if not batch:
            return
        for job in batch:
            self._waiting.remove(job)
        (part, class_name), photos = batch[0].key, [job.photo for job in batch]
        self.photos, self.batches = self.photos + len(batch), self.batches + 1
        try:
            for job, result in zip(batch, self.parts.predictor(part).inspect_batch(photos, class_name), strict=True):
                job.found.set_result(result)
        except Exception as error:
            for job in batch:
                job.found.set_exception(error)

    def pieces(self, answer: Generator[str, None, Prediction]) -> Generator[Any, None, None]:
        """The pieces of ``Predictor.stream``, then what it returns; generation stops when this is closed."""
        pieces, piece = with_result(answer), ""
        try:
            while isinstance(piece, str):
                piece = self.run(next, pieces)
                yield piece
        finally:
            self._executor.submit(pieces.close)
