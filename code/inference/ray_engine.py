"""Photos on a Ray cluster: results in Parquet files, each photo once, whichever worker or run was lost."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

from anomalygpt.errors import UserError
from anomalygpt.files import replacing
from anomalygpt.inference.outputs import NUMBERS, Result, verdict

MOST_ROWS, FILES_PER_WORKER = 256, 4  # photos in a file, which a lost worker leaves undone; at least so many files
Inspect = Callable[[Sequence[str]], Sequence[Result]]


class Worker:
    """Inspects blocks of photos, and writes the results of each to a file of its own, atomically."""

    def __init__(self, start: Callable[[], Inspect], folder: Path) -> None:
        self._inspect, self._folder = start(), folder

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        import pyarrow as pa
        from pyarrow.parquet import write_table

        paths = list(map(str, block["photo"]))
        rows = [{**each, "verdict": verdict(each), "result": json.dumps(each)} for each in self._inspect(paths)]
        schema = dict.fromkeys(("photo", "verdict", "result"), pa.string()) | dict.fromkeys(NUMBERS, pa.float64())
        name = sha256("\n".join(paths).encode()).hexdigest()[:24]  # a second try replaces the first one
        with replacing(self._folder / f"{name}.parquet") as temporary:
            write_table(pa.Table.from_pylist(rows, pa.schema(schema)), temporary)
        return {"written": [len(rows)]}


def inspect_on_ray(photos: Sequence[Path], folder: Path, start: Callable[[], Inspect]) -> Counter[str]:
    """Inspects the photos that the folder's files do not hold yet, on the cluster that runs or else a local one.

    ``start`` makes what inspects photos, in the process of each worker, which has a GPU or else a CPU core. Returns how
    many photos have each verdict, those of earlier runs included; raises :class:`UserError` where Ray is not installed,
    or a worker can't start.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, from_items
    except ImportError as error:
        raise UserError(f"--engine ray: {error}; pip install 'ray[data]'") from error
    folder, names = folder.absolute(), [str(path.absolute()) for path in photos]
    if left := sorted({*names} - _verdicts(folder).keys()):
        path = os.pathsep.join(filter(None, sys.path))  # workers import what this process can
        ray.init(ignore_reinit_error=True, runtime_env={"env_vars": {"PYTHONPATH": path}})
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        files = max(ceil(len(left) / MOST_ROWS), min(len(left), FILES_PER_WORKER * (gpus or cpus)))
        pool = ActorPoolStrategy(size=min(gpus or cpus, files))
        made: dict[str, Any] = {"fn_constructor_args": (start, folder), "num_gpus" if gpus else "num_cpus": 1}
        blocks = from_items([{"photo": name} for name in left], override_num_blocks=files)
        try:
            blocks.map_batches(Worker, batch_size=None, compute=pool, **made).materialize()
        except ray.exceptions.RayError as error:
            raise UserError(f"--engine ray: {str(error).strip().splitlines()[-1]}") from error
    return Counter(map(_verdicts(folder).__getitem__, names))


def _verdicts(folder: Path) -> dict[str, str]:
    from pyarrow.parquet import read_table

    tables = [read_table(file, columns=["photo", "verdict"]).to_pydict() for file in folder.glob("*.parquet")]
    return {photo: found for each in tables for photo, found in zip(each["photo"], each["verdict"], strict=True)}
