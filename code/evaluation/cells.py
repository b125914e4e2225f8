"""What is measured, zero-shot or against K good photos in rounds, and the state of an interrupted run."""

import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from anomalygpt import distributed
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.photos import configure
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.files import claimed, write_files
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.build import choose_device

PAPER_SHOTS = 4  # the paper uses 1, 2 or 4 references, and each round starts four photos after the last


@dataclass(frozen=True)
class Cell:
    """The unit of work: one class in one round with K references. Zero-shot has the single round 0."""

    shots: int
    round: int
    class_name: str

    def seed_of(self, seed: int, photo: str) -> int:
        """A seed per photo, so that sampled answers do not depend on the process or run that measures it."""
        return zlib.crc32(f"{seed}/{self.shots}/{self.round}/{photo}".encode())


@dataclass(frozen=True)
class Plan:
    """Which cells are measured, and which good training photos, sorted by path, are references."""

    shots: tuple[int, ...]
    rounds: int = 1
    choice: Literal["paper", "random"] = "paper"
    seed: int = 0  # of the random choice and of sampled answers

    def cells(self, records: Sequence[ImageRecord]) -> list[Cell]:
        """Every cell, round after round, so that a run that is stopped early has complete rounds."""
        class_names = sorted({record.class_name for record in records})
        rounds = [(shots, number) for shots in self.shots for number in range(self.rounds if shots else 1)]
        return [Cell(*of_round, name) for of_round in rounds for name in class_names]

    def references(self, records: Sequence[ImageRecord], cell: Cell) -> list[ImageRecord]:
        """The reference photos of a cell; raises UserError where there are too few good training photos."""
        own = [record for record in records if record.class_name == cell.class_name and record.split == "train"]
        good = sorted((record for record in own if not record.is_anomalous), key=lambda record: record.image)
        shots = cell.shots
        start = max(PAPER_SHOTS, shots) * cell.round if self.choice == "paper" else 0
        if start + shots > len(good):
            needed = f"the references need {start + shots} good training photos, there are {len(good)}"
            raise UserError(f"{cell.class_name}: {needed}; --shots 0 needs none")
        if self.choice == "random":
            # The same photos for the same class, K, round and seed.
            rng = np.random.default_rng([self.seed, cell.round, shots, zlib.crc32(cell.class_name.encode())])
            return [good[number] for number in sorted(rng.permutation(len(good))[:shots])]
        return good[start : start + shots]

    @property
    def good_photos_needed(self) -> int:
        """How many good training photos the references of all rounds are taken from."""
        return max(PAPER_SHOTS, *self.shots) * (self.rounds - 1) + max(self.shots)

    def __str__(self) -> str:
        """How references were chosen, in words."""
        if not any(self.shots):
            return "none; text map"
        if self.choice == "random":
            return "K good training photos per class, drawn at random in each round"
        # K > 4 is not in the paper; no two rounds share a photo.
        return "numbers 4 x round + k (K x round + k for K > 4), k < K, of the sorted good photos, as in the paper"

    def check(self, records: Sequence[ImageRecord]) -> None:
        """Raises UserError where a class has no test photo, or too few references for a round."""
        if not records:
            raise UserError("there are no photos")
        for cell in self.cells(records):
            if not test_photos(records, cell.class_name):
                raise UserError(f"no test photos of {cell.class_name}")
            self.references(records, cell)


def test_photos(records: Sequence[ImageRecord], class_name: str) -> list[ImageRecord]:
    """A class's test photos."""
    return [record for record in records if record.class_name == class_name and record.split == "test"]


def photo_name(record: ImageRecord, root: Path) -> str:
    """A photo's path relative to the data's root, with slashes: its name in the results."""
    return Path(os.path.relpath(record.image, root)).as_posix()


Measure = Callable[[Cell, Callable[[], object]], dict[str, Any]]
Builder = Callable[[Process], Measure]


@contextmanager
def _joined(device: str, out: Path | None) -> Iterator[tuple[Process, Path]]:
    """Joins the launcher's processes, and locks the run's folder: this process, and ``out`` or a temporary folder."""
    with ExitStack() as stack:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            process = Process(0, 1, choose_device(device))
        else:
            # The first process to finish its cells waits for the last.
            process = distributed.start(device.partition(":")[0], timeout=timedelta(days=30))
            stack.callback(distributed.stop)
            if out is None:
                raise UserError("several processes need a folder that all of them can access: name one, --out DIR")
        if out:
            distributed.on_main(process.is_main, lambda: stack.enter_context(claimed(out, "--out")))
        yield process, out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anomalygpt_eval_")))


def measure_cells(
    device: str, out: Path | None, settings: dict[str, Any], cells: Mapping[Cell, Sequence[str]], build: Builder
) -> tuple[Process, list[dict[str, Any]]]:
    """Measures the cells that have no file in ``out / "state"`` yet, shared by the launcher's processes.

    ``cells`` has the names of each one's photos; one with others is measured anew. A folder of other ``settings`` is
    refused by a UserError. Where there is something to measure, ``build`` makes the function that does it. Returns this
    process and, on the main one, each cell's values, ``shots``, ``round``, ``class``, ``names`` and ``seconds``.
    """
    with _joined(device, out) as (process, folder):
        state = folder / "state"
        settings = settings | {"device": process.device.type}  # cpu and cuda differ in the last digits
        distributed.on_main(process.is_main, lambda: _require(state, settings))
        files = {one: state / f"{one.shots}_shot_round_{one.round}/{quote(one.class_name, '')}.json" for one in cells}
        missing = [cell for cell, names in cells.items() if _read(files[cell]).get("names") != [*names]]
        distributed.barrier()  # every process has read the files before one of them writes another
        if own := missing[process.rank :: process.world_size]:
            measure = build(process)
            quiet = None if process.is_main else True  # None: where standard error is no terminal
            with tqdm(total=sum(len(cells[cell]) for cell in own), unit="photo", disable=quiet) as bar:
                for cell in own:
                    bar.set_description(f"{cell.class_name}, {cell.shots}-shot {cell.round}")
                    about = {"shots": cell.shots, "round": cell.round, "class": cell.class_name, "names": cells[cell]}
                    started = time.monotonic()
                    result = about | measure(cell, bar.update) | {"seconds": time.monotonic() - started}
                    write_files(files[cell].parent, {files[cell].name: result})
        distributed.barrier()
        return process, [_read(file) for file in files.values()] if process.is_main else []


def _read(file: Path) -> dict[str, Any]:
    """A JSON file's content; empty where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _require(state: Path, settings: dict[str, Any]) -> None:
    """Stores the settings that the numbers depend on; raises UserError where others are stored."""
    new = json.loads(json.dumps(settings))
    stored = _read(state / "settings.json") or new
    for key in {**new, **stored}:
        if new.get(key) != stored.get(key):
            before, now = (json.dumps(values.get(key), ensure_ascii=False)[:80] for values in (stored, new))
            other = f"holds a run with another {key} ({before}, now {now})"
            raise UserError(f"{state.parent}: {other}; name another --out, or delete {state} to start anew")
    write_files(state, {"settings.json": new})


def build_predictor(config: ExperimentConfig, process: Process, with_llm: bool) -> Predictor:
    """The predictor in the geometry of the paper's evaluation."""
    configure(config.data)
    torch.manual_seed(config.seed)  # parts without a delta are random, and must be equal in all processes
    predictor = Predictor.from_config(config, str(process.device), with_llm=with_llm)
    predictor.use_evaluation_geometry()
    return predictor
