"""The state of a run in its folder, so that it can be stopped, killed, and started again by the same command."""

import json
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

from typing_extensions import Self

from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.files import replacing

FOLDER = "state"
SETTINGS = "settings.json"


class Kept(Protocol):
    """What is kept of some photos of a cell."""

    seconds: float

    def names(self) -> set[str]:
        """The photos."""
        ...

    def merge(self, other: Self) -> None:
        """Adds other photos."""
        ...

    def write(self, path: Path) -> None:
        """Writes a file, whole or not at all. Raises OSError."""
        ...

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads it back. Raises UserError for a damaged one."""
        ...


K = TypeVar("K", bound=Kept)


class State(Generic[K]):
    """Finished cells, and parts of the one that was being measured; each file appears whole or not at all.

    Every process writes parts of its own; photos that are in any part are not measured again, by however many
    processes the run goes on.

    Args:
        folder: of the run.
        empty: makes what is kept of no photo yet.
    """

    def __init__(self, folder: Path, empty: type[K]) -> None:
        self.folder = folder / FOLDER
        self.empty = empty

    def require(self, settings: dict[str, Any]) -> None:
        """Keeps the settings that numbers depend on, and refuses to mix those of two runs.

        Raises:
            UserError: the folder holds a run with other settings.
            OSError: the folder can't be written.
        """
        path = self.folder / SETTINGS
        wanted = json.loads(json.dumps(settings))
        if path.is_file():
            found = _read_settings(path)
            different = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
            if different:
                key = different[0]
                raise UserError(
                    f"{self.folder.parent}: holds a run with another {key} ({_short(found.get(key))}, now "
                    f"{_short(wanted.get(key))}); name another --out, or delete {self.folder} to start anew"
                )
            return
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def finished(self, cell: Cell) -> K | None:
        """A cell that was measured to its end.

        Raises:
            UserError: its file is damaged.
        """
        path = self._path(cell)
        return self.empty.read(path) if path.is_file() else None

    def parts(self, cell: Cell) -> dict[int, Path]:
        """The files of a cell that was not, by number."""
        found = self._path(cell).parent.glob(f"{self._path(cell).name}.part*")
        return {int(path.name.rpartition(".part")[2]): path for path in sorted(found)}

    def measured(self, cell: Cell) -> set[str]:
        """The photos of a cell that need not be measured again.

        Raises:
            UserError: a file is damaged.
        """
        done = self.finished(cell)
        if done is not None:
            return done.names()
        return {name for path in self.parts(cell).values() for name in self.empty.read(path).names()}

    def write_part(self, cell: Cell, number: int, part: K) -> None:
        """Writes a part, in place of an earlier one of this number.

        Raises:
            OSError: it can't be written.
        """
        path = self._path(cell)
        part.write(path.with_name(f"{path.name}.part{number}"))

    def finish(self, cell: Cell) -> K:
        """Adds a cell's parts up, writes the whole, and then deletes the parts.

        Raises:
            UserError: a part is damaged.
            OSError: the file can't be written.
        """
        parts = self.parts(cell)
        whole = self.empty()
        for path in parts.values():
            whole.merge(self.empty.read(path))
        whole.write(self._path(cell))
        for path in parts.values():
            path.unlink()
        return whole

    def _path(self, cell: Cell) -> Path:
        # A table may call a class anything.
        name = quote(cell.class_name, safe=" ").replace(".", "%2E")
        return self.folder / f"{cell.shots}_shot_round_{cell.round}" / name


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); delete {path.parent} to start anew") from error
    return found if isinstance(found, dict) else {}


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
