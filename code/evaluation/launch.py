"""What ``run_eval.py`` and ``run_mmad.py`` share: options, processes, the run's folder, and the predictor."""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from anomalygpt.errors import UserError, user_errors
from anomalygpt.files import claimed

if TYPE_CHECKING:
    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.distributed import Process
    from anomalygpt.inference.predictor import Predictor

INTERRUPTED = 130  # what shells return after Ctrl-C

logger = logging.getLogger(__name__)


def whole_number(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``least`` on."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {least} or more")
        return int(text)

    return parse


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of both programs, and the command as it was given."""

    out: Path | None
    config: str | None
    device: str
    seed: int | None
    set: list[str]
    command: str


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of both programs."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder for the results, and the state to go on from")
    run.add_argument("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    run.add_argument("--seed", type=whole_number(0), help="of references and answers (default: config's)")
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change"
    )
    run.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def run(program: Callable[[], object], out: Path | None) -> int:
    """Runs a program to its exit code: 0, or 130 when it was stopped; a user's mistake exits with 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with user_errors():
        try:
            if out and out.exists() and not out.is_dir():
                raise UserError(f"--out {out}: this is a file, a folder was expected")
            program()
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on" if out else "\nstopped", file=sys.stderr)
            return INTERRUPTED
    return 0


@contextmanager
def started(device: str, out: Path | None) -> Iterator[tuple["Process", Path]]:
    """Joins the processes of ``torchrun``, ``deepspeed``, ``mpirun`` or ``srun``, and claims the run's folder.

    Yields:
        This process, and ``--out`` or a temporary folder.

    Raises:
        UserError: the folder can't be used, or a file can't be written there.
    """
    from anomalygpt import distributed
    from anomalygpt.model.build import choose_device

    with ExitStack() as held:
        distributed.adopt_launcher_environment()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            process = distributed.Process(0, 0, 1, choose_device(device))
        else:
            # The first process to finish its cells waits for the last.
            process = distributed.start(device.partition(":")[0], barrier_timeout=timedelta(days=30))
            held.callback(distributed.stop)
        if out is None and process.world_size > 1:
            raise UserError("several processes need a folder that all of them see: name one, --out DIR")
        folder = out or Path(held.enter_context(tempfile.TemporaryDirectory(prefix="anomalygpt_eval_")))
        if out:
            distributed.on_main(process.is_main, lambda: held.enter_context(claimed(folder, "--out")))
        try:
            yield process, folder
        except OSError as error:
            raise UserError(f"{folder}: can't be written ({error.strerror or error})") from error


def build_predictor(
    config: "ExperimentConfig", process: "Process", *, with_llm: bool, maps_by_text: bool
) -> "Predictor":
    """The predictor in the geometry of the paper's evaluation.

    Args:
        maps_by_text: whether maps are drawn without references, too.
    """
    import torch

    from anomalygpt.inference.predictor import Predictor

    torch.manual_seed(config.seed)  # parts that no delta fills are random, and must be the same in all processes
    predictor = Predictor.from_config(config, str(process.device), with_llm=with_llm)
    predictor.use_evaluation_geometry()
    if not config.deltas and (with_llm or maps_by_text):
        logger.warning("warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights")
    return predictor
