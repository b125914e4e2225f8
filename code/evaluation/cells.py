"""Measures cells by several processes, one file each, so that the same command continues an interrupted run."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from tqdm import tqdm

from anomalygpt import distributed
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.photos import configure
from anomalygpt.datasets.records import first_offenders
from anomalygpt.distributed import Process
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.files import claimed, replacing
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.build import choose_device

Measure = Callable[[Cell, Callable[[], object]], dict[str, Any]]


@contextmanager
def _joined(device: str, out: Path | None) -> Iterator[tuple[Process, Path]]:
    """Joins the launcher's processes, and locks the run's folder: this process, and ``out`` or a temporary folder."""
    with ExitStack() as stack:
        distributed.adopt_launcher_environment()
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
        This process and, on the main one, each cell's values and its ``shots``, ``round``, ``class`` and ``names``.

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
                    _write_json(files[cell], about | measure(cell, bar.update))
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
        _write_json(file, new)
    stored = json.loads(file.read_text(encoding="utf-8"))
    for key in {**new, **stored}:
        if new.get(key) != stored.get(key):
            before, now = (json.dumps(values.get(key), ensure_ascii=False)[:80] for values in (stored, new))
            raise _mismatch(state, f"with another {key} ({before}, now {now})")


def _mismatch(state: Path, difference: str) -> UserError:
    return UserError(f"{state.parent}: holds a run {difference}; name another --out, or delete {state} to start anew")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")


def build_predictor(config: ExperimentConfig, process: Process, *, with_llm: bool, needs_text_map: bool) -> Predictor:
    """The predictor in the geometry of the paper's evaluation; ``needs_text_map``: also used without references."""
    configure(config.data)
    torch.manual_seed(config.seed)  # parts without a delta are random, and must be equal in all processes
    predictor = Predictor.from_config(config, str(process.device), with_llm=with_llm)
    predictor.use_evaluation_geometry()
    if not config.deltas and (with_llm or needs_text_map):
        message = "warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights"
        logging.getLogger(__name__).warning(message)
    return predictor
