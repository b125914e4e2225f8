"""Photos from requests, and parts: references that are saved in a folder and used by name."""

import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from PIL import Image

from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.inference.references import SUFFIX, saved_photo_settings

if TYPE_CHECKING:
    from anomalygpt.config.settings import PhotoSettings
    from anomalygpt.inference.predictor import Predictor

NO_PART = "default"  # photos are compared with the text features
NAME = r"^\w[\w .\-]{0,59}$"
MAX_LOADED = 8  # parts: 60 MB each with the compact model, hundreds with ImageBind


def from_data_uri(uri: str) -> bytes:
    """The content of a base64 data URI. Raises HTTPException (400) for anything else: nothing is fetched."""
    with suppress(ValueError):
        if found := re.match(r"data:[^,]{0,100};base64,", uri):
            return b64decode(uri[found.end() :], validate=True)
    text = f"{uri[:60]!r} is not fetched: send the photo itself in base64, as in data:image/png;base64,iVBOR…"
    raise HTTPException(400, text)


def read_photo(data: bytes, name: str, settings: "PhotoSettings | None", megapixels: float) -> Image.Image:
    """Decodes a photo from its file's bytes; ``info["source"]`` is its name.

    Args:
        settings: see ``photos.load_image``.

    Raises:
        HTTPException: 413 if it has more megapixels than allowed, 422 if it can't be read.
    """

    def check(image: Image.Image) -> None:
        if (found := image.width * image.height / 1e6) > megapixels:
            raise HTTPException(413, f"{name}: {found:.1f} megapixels; at most {megapixels:g} are accepted")

    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(BytesIO(data)) as header:
        check(header)
    with NamedTemporaryFile(prefix="photo_") as file:
        file.write(data)
        file.flush()
        try:
            photo = load_image(Path(file.name), settings)
        except DatasetError as error:
            text = str(error).replace(file.name, name).replace(Path(file.name).name, name)
            raise HTTPException(422, text) from None
    check(photo)
    photo.info = {"source": name}
    return photo


class Parts:
    """The parts in a folder, one file of saved references each. Only the model's thread may load, teach or delete.

    Args:
        predictor: has no references; others with the same model are made from it.
    """

    def __init__(self, folder: Path, predictor: "Predictor") -> None:
        self.folder, self._without_references = folder, predictor
        self._loaded: dict[Path, tuple[int, Predictor]] = {}  # by file: when it was written, and what it holds

    def names(self) -> list[str]:
        """The names of all parts, sorted."""
        names = (path.stem for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if name != NO_PART and re.fullmatch(NAME, name))

    def _path(self, name: str, *, exists: bool = True) -> Path:
        if name == NO_PART or not re.fullmatch(NAME, name):
            raise HTTPException(400, f"{name[:60]!r} can't name a part: use letters, digits, spaces, '_', '-' and '.'")
        path = self.folder / (name + SUFFIX)
        if exists and not path.is_file():
            raise HTTPException(404, f"no part {name!r}: teach it by PUT /v1/parts/NAME, or use {NO_PART!r}")
        return path

    def photo_settings(self, name: str) -> "PhotoSettings | None":
        """How photos of a part are read: as its references were; None: as the server's settings say."""
        return None if name == NO_PART else saved_photo_settings(self._path(name))

    def predictor(self, name: str) -> "Predictor":
        """The predictor with a part's references."""
        if name == NO_PART:
            return self._without_references
        path = self._path(name)
        written, predictor = self._loaded.get(path, (0, None))
        if predictor is None or written != path.stat().st_mtime_ns:
            predictor = self._without_references.without_references()
            predictor.load_references(path)
        return self._keep(path, predictor)

    def _keep(self, path: Path, predictor: "Predictor") -> "Predictor":
        """Keeps a part that its file holds, too, and drops the one that was not used for longest."""
        self._loaded.pop(path, None)
        self._loaded[path] = path.stat().st_mtime_ns, predictor
        for oldest in list(self._loaded)[:-MAX_LOADED]:
            del self._loaded[oldest]
        return predictor

    def teach(self, name: str, photos: Sequence[Image.Image]) -> dict[str, Any]:
        """Encodes and saves good photos in place of what the part was before; returns what :func:`about` does."""
        path, predictor = self._path(name, exists=False), self._without_references.without_references()
        predictor.set_references(photos)
        predictor.save_references(path)
        return about(name, self._keep(path, predictor))

    def correct(self, name: str, photo: Image.Image, good: bool | None) -> dict[str, Any]:
        """Counts a photo as good or bad, or by None as neither, from the next verdict on; its file keeps that."""
        with self._changing(name) as predictor:
            predictor.feedback(predictor.inspect(photo), good)
        return about(name, predictor)

    def forget_corrections(self, name: str) -> None:
        """Withdraws all that :meth:`correct` added."""
        with self._changing(name) as predictor:
            predictor.forget_feedback()

    @contextmanager
    def _changing(self, name: str) -> "Iterator[Predictor]":
        """A part to be changed. It is saved then, and kept only if that succeeds: a full disk leaves it as it was."""
        path, predictor = self._path(name), self.predictor(name)
        del self._loaded[path]
        yield predictor
        predictor.save_references(path)
        self._keep(path, predictor)

    def describe(self, name: str) -> dict[str, Any]:
        """What :func:`about` says of a part."""
        return about(name, self.predictor(name))

    def forget(self, name: str) -> None:
        """Deletes a part and its file."""
        path = self._path(name)
        path.unlink()
        self._loaded.pop(path, None)


def about(name: str, predictor: "Predictor") -> dict[str, Any]:
    """A part's name, its number of references, and what they are worth, in lines for people."""
    report = predictor.report()
    return {"name": name, "references": len(report.names), "report": report.lines()}
