"""The library's face: ``from anomalygpt import AnomalyGPT``."""

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.config.load import load_config
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.photos import configure, load_image, to_rgb
from anomalygpt.errors import UserError
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.anomalygpt import UNNAMED_CLASS
from anomalygpt.model.build import installed_config

Photo = str | PathLike[str] | Image.Image | NDArray[Any]


class AnomalyGPT:
    """Inspects photos of a part, and talks about the latest one; made of a ``predictor``, with all settings."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._latest: ImageResult | None = None
        self._history: list[tuple[str, str]] = []

    @classmethod
    def from_pretrained(
        cls, name: str | None = None, device: str = "auto", *, chat: bool = True, settings: Sequence[str] = ()
    ) -> "AnomalyGPT":
        """Loads a model; weights that can be fetched are fetched first.

        Args:
            name: a shipped experiment, such as ``compact``, or a YAML file; by default what is installed.
            device: ``auto``, ``cpu``, ``cuda`` …
            chat: False leaves the language model out: it loads sooner, and can't :meth:`chat`.
            settings: ``key.sub=value`` each, as after ``--set`` on the command line.

        Raises :class:`UserError`: no such experiment, a wrong setting, or weights that are absent or damaged.
        """
        config = load_config(name or installed_config(), settings)
        configure(config.data)
        return cls(Predictor.from_config(config, device, with_llm=chat))

    def teach(self, photos: Photo | Sequence[Photo]) -> "AnomalyGPT":
        """Learns a part by 1 to 200 photos of good ones, in place of the part before; without photos it forgets."""
        is_array = isinstance(photos, np.ndarray) and photos.ndim < 4
        listed: Any = [photos] if is_array or isinstance(photos, str | PathLike | Image.Image) else photos
        self.predictor.set_references([_image(photo) for photo in listed])
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the part that was taught to a .safetensors file. Raises :class:`UserError` if there is none."""
        self.predictor.save_references(Path(path))

    def load(self, path: str | PathLike[str]) -> "AnomalyGPT":
        """Takes a part that :meth:`save`, the demo or ``predict.py`` saved. Raises :class:`UserError`."""
        self.predictor.set_references((), Path(path))
        return self

    def inspect(self, photo: Photo, class_name: str = UNNAMED_CLASS) -> ImageResult:
        """Judges a photo of a class, such as ``screw``, and begins a conversation about it.

        ``photo``: a path, an image, or an array (height, width[, 3]) of uint8; :class:`UserError` if it can't be read.
        """
        read = _image(photo, self.predictor.photo_settings)
        self._latest, self._history = self.predictor.inspect(read, class_name), []
        return self._latest

    def chat(self, question: str) -> str:
        """The answer to a question about the latest photo; it remembers earlier ones. Raises :class:`UserError`."""
        return "".join(self.stream(question))

    def stream(self, question: str) -> Iterator[str]:
        """:meth:`chat` in pieces; an answer that is broken off is remembered as far as it went."""
        if self._latest is None:
            raise UserError("nothing to talk about: inspect a photo first")
        if self.predictor.language_model is None:
            raise UserError("no language model is loaded: from_pretrained(…, chat=True) loads one")
        text, history = "", self._history  # another photo begins another history
        try:
            for piece in self.predictor.stream(self._latest, question, history):
                text += piece
                yield piece
        finally:
            history.append((question, text))


def _image(photo: Photo, settings: PhotoSettings | None = None) -> Image.Image:
    if not isinstance(photo, np.ndarray):
        return to_rgb(photo) if isinstance(photo, Image.Image) else load_image(Path(photo), settings)
    if photo.size and photo.dtype == np.uint8 and photo.ndim in (2, 3) and photo.shape[2:] in ((), (3,)):
        return to_rgb(Image.fromarray(photo))
    found = f"an array of shape {photo.shape} and {photo.dtype}"
    raise UserError(f"{found}: expected (height, width) or (height, width, 3) of uint8; or give the file's path")
