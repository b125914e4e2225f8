"""Results of cells: one file each in the run's folder, so that a stopped run goes on by the same command."""

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
    """One test photo.

    Attributes:
        photo: its path below the data's root.
        has_pixels: whether its pixels were counted: good, or with a mask.
        threshold: a pixel of the map above it is anomalous.
        probability: that the photo is anomalous, by the score.
        verdict, verdict_from: what the user is given, and what decided it.
        answer: in words; empty without a language model.
        said: what the answer says; None where it says neither yes nor no, or there is none.
        own_said: what the language model itself answered, before the score overruled it.
        positions: of the marked defects, largest first, as the model was shown the photo.
        named: the positions that the answer names, in its order.
        named_holds_defect: whether the first of them holds part of a defect; None where there is no such question.
    """

    photo: str
    defect: str
    is_anomalous: bool
    has_pixels: bool
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
    """One class in one round. Metrics are 0..1, None where they are not defined or were not measured.

    Attributes:
        references: the good photos that the maps were compared with, none for zero-shot.
        photos: the test photos, sorted by name.
        metrics: by the keys of ``METRICS``.
        bounds: of the pixel metrics, how far the exact values may lie from the given ones.
        masked_photos: photos that pixel metrics are of: good, or with a mask.
        regions: marked defects in them.
        no_verdict: answers of the language model itself that say neither yes nor no.
        placed: answers that position accuracy is of: a true yes about a photo with a mask.
        seconds: that measuring took.
        maps: how photos, maps and masks were brought to the same pixels, in words.
        saturated: whether LOCO's saturation counted.
        curves: x and y of ``roc`` over photos, ``pixel_roc``, ``pro``; each only where it is defined.
        examples: the best and worst photos, by what they are examples of: names, and JPEGs of their pictures.
    """

    cell: Cell
    references: tuple[str, ...]
    photos: tuple[PhotoResult, ...]
    metrics: dict[str, float | None]
    bounds: dict[str, float]
    masked_photos: int
    regions: int
    no_verdict: int
    placed: int
    seconds: float
    maps: str
    saturated: bool
    curves: dict[str, tuple[list[float], list[float]]]
    examples: dict[str, list[tuple[str, Base64Bytes]]]

    @property
    def anomalous(self) -> int:
        """How many test photos have a defect."""
        return sum(photo.is_anomalous for photo in self.photos)


class CellStore:
    """The result files of a run, each written whole or not at all.

    Args:
        folder: of the run; the files lie in its subfolder ``state``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"

    def require(self, settings: dict[str, Any]) -> None:
        """Stores the settings that numbers depend on, and refuses to mix those of two runs.

        Raises:
            UserError: the folder holds a run with other settings.
            OSError: the folder can't be written.
        """
        path = self.folder / "settings.json"
        wanted = json.loads(json.dumps(settings))
        if not path.is_file():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: can't be read ({error}); delete {self.folder} to start anew") from error
        for key in {**wanted, **found}:
            if wanted.get(key) != found.get(key):
                then, now = (json.dumps(values.get(key), ensure_ascii=False)[:80] for values in (found, wanted))
                raise self.mixed(f"with another {key} ({then}, now {now})")

    def mixed(self, run: str) -> UserError:
        """The error of a folder that holds another run; ``run`` says how it differs."""
        return UserError(
            f"{self.folder.parent}: holds a run {run}; name another --out, or delete {self.folder} to start anew"
        )

    def fill(
        self,
        cells: Sequence[Cell],
        process: distributed.Process,
        photos: Callable[[Cell], int],
        build: Callable[[], Callable[[Cell, Callable[[], object]], object]],
    ) -> None:
        """Measures the cells without a result, shared out among the processes; all of them must call it together.

        Args:
            photos: how many photos a cell has.
            build: makes what measures a cell, a dataclass, and calls its second argument after each photo; not called
                where this process has nothing to measure.

        Raises:
            OSError: a result can't be written.
        """
        missing = [cell for cell in cells if not self._path(cell).is_file()]
        distributed.barrier()  # all have seen the same files before one of them writes another
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
        """Reads a cell's result.

        Raises:
            UserError: its file is damaged.
        """
        path = self._path(cell)
        try:
            return TypeAdapter(kind).validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: can't be read ({reason}); delete it, the cell is measured again") from error

    def _path(self, cell: Cell) -> Path:
        # A table may call a class anything.
        name = quote(cell.class_name, safe=" ").replace(".", "%2E")
        return self.folder / f"{cell.shots}_shot_round_{cell.round}" / f"{name}.json"
