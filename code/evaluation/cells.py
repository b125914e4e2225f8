"""Stored results of cells, one file each, so that an interrupted run can be continued by the same command."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import Base64Bytes, TypeAdapter
from tqdm import tqdm

from anomalygpt import distributed
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.files import replacing

R = TypeVar("R")


@dataclass(frozen=True)
class PhotoResult:
    """The prediction for one test photo, and its ground truth.

    Attributes:
        threshold: map values above it are anomalous.
        probability: calibrated probability that the photo is anomalous.
        said: the answer's yes or no; None for neither.
        own_said: the same of the language model's first answer, before the score overruled it.
        positions: names of the marked defects' positions, largest first, in the photo as the model was shown it.
        named: positions in the answer, in its order.
        named_holds_defect: whether the first of ``named`` contains part of a defect; None without a yes or a mask.
    """

    photo: str
    defect: str
    is_anomalous: bool
    score: float
    threshold: float
    probability: float
    verdict: bool
    verdict_from: str
    answer: str
    said: bool | None
    own_said: bool | None
    positions: tuple[str, ...]
    named: tuple[str, ...]
    named_holds_defect: bool | None


@dataclass(frozen=True)
class CellResult:
    """The result of one class in one round. Metrics are 0..1, None where undefined or not measured.

    Attributes:
        masked_photos: number of photos in the pixel metrics: good, or with a mask.
        no_verdict: number of answers by the language model itself without a yes or no.
        placed: number of answers in position accuracy: a correct yes about a photo with a mask.
        maps: how photos, maps and masks were aligned, in words.
        examples: by case, names and JPEGs of the best and worst photos.
    """

    cell: Cell
    references: tuple[str, ...]
    photos: tuple[PhotoResult, ...]
    metrics: dict[str, float | None]
    masked_photos: int
    regions: int
    no_verdict: int
    placed: int
    seconds: float
    maps: str
    saturated: bool
    examples: dict[str, list[tuple[str, Base64Bytes]]]


class CellStore:
    """The result files of a run, written atomically into ``folder / "state"``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"

    def require(self, settings: dict[str, Any]) -> None:
        """Stores the settings that the numbers depend on; raises UserError where others are stored."""
        path = self.folder / "settings.json"
        new = json.loads(json.dumps(settings))
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read ({error}); delete {self.folder} to start anew") from error
        for key in {**new, **stored}:
            if new.get(key) != stored.get(key):
                before, now = (json.dumps(values.get(key), ensure_ascii=False)[:80] for values in (stored, new))
                raise self.mismatch(f"with another {key} ({before}, now {now})")

    def mismatch(self, difference: str) -> UserError:
        """The error of a folder that holds another run."""
        return UserError(
            f"{self.folder.parent}: holds a run {difference}; name another --out, or delete {self.folder} to start anew"
        )

    def fill(
        self,
        cells: Sequence[Cell],
        process: distributed.Process,
        photos: Callable[[Cell], int],
        build: Callable[[], Callable[[Cell, Callable[[], object]], object]],
    ) -> None:
        """Measures the cells without a result, distributed over the processes; all of them must call it.

        Args:
            photos: number of photos of a cell.
            build: makes the function that measures a cell and calls its second argument after each photo; it returns
                a dataclass. Not called where this process has nothing to measure.
        """
        missing = [cell for cell in cells if not self._path(cell).is_file()]
        distributed.barrier()  # every process has listed the files before one of them writes another
        own = missing[process.rank :: process.world_size]
        if own:
            measure = build()
            quiet = not process.is_main or not sys.stderr.isatty()
            with tqdm(total=sum(map(photos, own)), unit="photo", disable=quiet) as bar:
                for cell in own:
                    bar.set_description(f"{cell.class_name}, {cell.shots}-shot {cell.round}")
                    result = measure(cell, bar.update)
                    with replacing(self._path(cell)) as temporary:
                        temporary.write_bytes(TypeAdapter(type(result)).dump_json(result))
        distributed.barrier()

    def load(self, cell: Cell, kind: type[R]) -> R:
        """Reads a cell's result; raises UserError where its file is damaged."""
        path = self._path(cell)
        try:
            return TypeAdapter(kind).validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be read ({reason}); delete it, the cell is measured again") from error

    def _path(self, cell: Cell) -> Path:
        name = quote(cell.class_name, safe=" ").replace(".", "%2E")  # class names from tables may hold any character
        return self.folder / f"{cell.shots}_shot_round_{cell.round}" / f"{name}.json"
