"""What is measured, zero-shot or against K good photos in rounds, and the state of an interrupted run."""

import json
import os
import sys
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
import pandas as pd
import torch
from tqdm import tqdm

from anomalygpt import distributed
from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.photos import configure
from anomalygpt.datasets.records import ImageRecord, first_offenders
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.evaluation.tables import write_texts
from anomalygpt.files import claimed, sha256
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.build import choose_device

PAPER_SHOTS = 4  # the paper uses 1, 2 or 4 references, and each round starts four photos after the last


@dataclass(frozen=True)
class Cell:
    """The unit of work: one class in one round with K references. Zero-shot has the single round 0."""

    shots: int
    round: int
    class_name: str


@dataclass(frozen=True)
class Plan:
    """Which cells are measured, and which photos are references.

    Attributes:
        choice: ``paper`` takes numbers ``4 * round + k`` of the good training photos, sorted by path, k < K. For
            K > 4 they are ``K * round + k``, so that no two rounds share a photo. ``random`` draws.
        seed: of the random choice and of sampled answers.
    """

    shots: tuple[int, ...]
    rounds: int = 1
    choice: Literal["paper", "random"] = "paper"
    seed: int = 0

    def cells(self, records: Sequence[ImageRecord]) -> list[Cell]:
        """Every cell, round after round, so that a run that is stopped early has complete rounds."""
        class_names = sorted({record.class_name for record in records})
        rounds = [(shots, number) for shots in self.shots for number in range(self.rounds if shots else 1)]
        return [Cell(*of_round, name) for of_round in rounds for name in class_names]

    def references(self, records: Sequence[ImageRecord], cell: Cell) -> list[ImageRecord]:
        """The reference photos of a cell; raises UserError where there are too few good training photos."""
        own = [record for record in records if record.class_name == cell.class_name]
        good = [record for record in own if record.split == "train" and not record.is_anomalous]
        good.sort(key=lambda record: record.image)
        shots = cell.shots
        start = max(PAPER_SHOTS, shots) * cell.round if shots and self.choice == "paper" else 0
        if start + shots > len(good):
            advice = "" if good else "; photos without a training split can be measured with --shots 0 alone"
            needed = f"the references need {start + shots} good training photos, there are {len(good)}"
            raise UserError(f"{cell.class_name}: {needed}{advice}")
        if self.choice == "random":
            # The same photos for the same class, K, round and seed.
            rng = np.random.default_rng([self.seed, cell.round, shots, zlib.crc32(cell.class_name.encode())])
            return [good[number] for number in sorted(rng.permutation(len(good))[:shots])]
        return good[start : start + shots]

    @property
    def good_photos_needed(self) -> int:
        """How many good training photos the references of all rounds are taken from."""
        most = max(self.shots)
        return max(PAPER_SHOTS, most) * (self.rounds - 1) + most if most else 0

    def __str__(self) -> str:
        """How references were chosen, in words."""
        if not any(self.shots):
            return "none; text map"
        if self.choice == "random":
            return "K good training photos per class, drawn at random in each round"
        beyond = f" (K x round + k for K > {PAPER_SHOTS})" if max(self.shots) > PAPER_SHOTS else ""
        return f"numbers {PAPER_SHOTS} x round + k, k < K, of the sorted good training photos, as in the paper{beyond}"

    def check(self, records: Sequence[ImageRecord]) -> None:
        """Raises UserError where a class has no test photo, or too few references for a round."""
        names = sorted({record.class_name for record in records})
        untested = [name for name in names if not test_photos(records, name)]
        if untested or not names:
            raise UserError(f"no test photos of {first_offenders(untested) or 'any class'}")
        for cell in self.cells(records):
            self.references(records, cell)


def test_photos(records: Sequence[ImageRecord], class_name: str) -> list[ImageRecord]:
    """A class's test photos."""
    return [record for record in records if record.class_name == class_name and record.split == "test"]


def photo_name(record: ImageRecord, root: Path) -> str:
    """A photo's path relative to the data's root, with slashes: its name in the results."""
    return Path(os.path.relpath(record.image, root)).as_posix()


def photo_seed(seed: int, cell: Cell, photo: str) -> int:
    """A seed per photo, so that sampled answers do not depend on the process or run that measures it."""
    return zlib.crc32(f"{seed}/{cell.shots}/{cell.round}/{photo}".encode())


Measure = Callable[[Cell, Callable[[], object]], dict[str, Any]]


@contextmanager
def _joined(device: str, out: Path | None) -> Iterator[tuple[Process, Path]]:
    """Joins the launcher's processes, and locks the run's folder: this process, and ``out`` or a temporary folder."""
    with ExitStack() as stack:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            process = Process(0, 0, 1, choose_device(device))
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
    device: str,
    out: Path | None,
    settings: dict[str, Any],
    cells: Mapping[Cell, Sequence[str]],
    build: Callable[[Process], Measure],
) -> tuple[Process, list[dict[str, Any]]]:
    """Measures the cells that have no file in ``out / "state"`` yet, shared by the launcher's processes.

    Args:
        settings: what the numbers depend on; a folder with others is refused.
        cells: the names of the photos of each.
        build: makes the function that measures a cell and calls its second argument after each photo; it returns
            JSON-ready values. Not called where a process has nothing to measure.

    Returns:
        This process and, on the main one, each cell's values, ``shots``, ``round``, ``class``, ``names``, ``seconds``.

    Raises:
        UserError: the folder holds another run, or can't be written.
    """
    with _joined(device, out) as (process, folder):
        state = folder / "state"
        settings = settings | {"device": process.device.type}  # cpu and cuda differ in the last digits
        distributed.on_main(process.is_main, lambda: _require(state, settings))
        files = {
            cell: state / f"{cell.shots}_shot_round_{cell.round}" / f"{quote(cell.class_name, safe='')}.json"
            for cell in cells
        }
        missing = [cell for cell in cells if not files[cell].is_file()]
        distributed.barrier()  # every process has listed the files before one of them writes another
        if own := missing[process.rank :: process.world_size]:
            measure = build(process)
            quiet = not process.is_main or not sys.stderr.isatty()
            with tqdm(total=sum(len(cells[cell]) for cell in own), unit="photo", disable=quiet) as bar:
                for cell in own:
                    bar.set_description(f"{cell.class_name}, {cell.shots}-shot {cell.round}")
                    about = {"shots": cell.shots, "round": cell.round, "class": cell.class_name, "names": cells[cell]}
                    started = time.monotonic()
                    result = about | measure(cell, bar.update) | {"seconds": time.monotonic() - started}
                    text = json.dumps(result, ensure_ascii=False, indent=1)
                    write_texts(files[cell].parent, {files[cell].name: text})
        distributed.barrier()
        results = [json.loads(file.read_text(encoding="utf-8")) for file in files.values()] if process.is_main else []
    for result, names in zip(results, cells.values(), strict=False):
        if other := {*names} ^ {*result["names"]}:
            raise _mismatch(state, f"on other photos ({first_offenders(sorted(other))})")
    return process, results


def _require(state: Path, settings: dict[str, Any]) -> None:
    """Stores the settings that the numbers depend on; raises UserError where others are stored."""
    file, new = state / "settings.json", json.loads(json.dumps(settings))
    if not file.is_file():
        write_texts(state, {file.name: json.dumps(new, ensure_ascii=False, indent=1)})
    stored = json.loads(file.read_text(encoding="utf-8"))
    for key in {**new, **stored}:
        if new.get(key) != stored.get(key):
            before, now = (json.dumps(values.get(key), ensure_ascii=False)[:80] for values in (stored, new))
            raise _mismatch(state, f"with another {key} ({before}, now {now})")


def _mismatch(state: Path, difference: str) -> UserError:
    return UserError(f"{state.parent}: holds a run {difference}; name another --out, or delete {state} to start anew")


def fingerprint(config: ExperimentConfig, with_llm: bool) -> dict[str, Any]:
    """The model's settings by dotted key, and a digest of each delta: equal for runs with equal numbers."""
    # parts of a config that an evaluation does not read
    excluded = {"name", "data", "training"} | (set() if with_llm else {"llm"})
    settings = config.model_dump(mode="json", exclude=excluded)
    reading = config.data.model_dump(mode="json", include=set(PhotoSettings.model_fields), exclude_none=True)
    [flat] = pd.json_normalize(settings | {"data": reading}).to_dict("records")
    # A missing delta is downloaded, and then checked, when the model is built.
    paths = {delta.path: resolve(delta.path) for delta in config.deltas}
    digests = {f"contents of {name}": sha256(path) for name, path in paths.items() if path.is_file()}
    return {**flat, **digests, "chat": with_llm}


def build_predictor(config: ExperimentConfig, process: Process, *, with_llm: bool, needs_text_map: bool) -> Predictor:
    """The predictor in the geometry of the paper's evaluation; ``needs_text_map``: also used without references."""
    configure(config.data)
    torch.manual_seed(config.seed)  # parts without a delta are random, and must be equal in all processes
    predictor = Predictor.from_config(config, str(process.device), with_llm=with_llm)
    predictor.use_evaluation_geometry()
    if not config.deltas and (with_llm or needs_text_map):
        message = "warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights"
        print(message, file=sys.stderr)
    return predictor
