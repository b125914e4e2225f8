"""Shared by ``run_eval.py`` and ``run_mmad.py``: options, processes, the run's folder, and the predictor."""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from anomalygpt.errors import UserError, user_errors
from anomalygpt.files import claimed

if TYPE_CHECKING:
    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.distributed import Process
    from anomalygpt.inference.predictor import Predictor

INTERRUPTED = 130  # the exit code of shells after Ctrl-C


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``minimum`` on."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {minimum} or more")
        return int(text)

    return parse


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of both programs."""
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the results, and for the state that a later run continues")
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--seed", type=whole_number(0), help="of references and answers (default: config's)")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def run(program: Callable[[], object], out: Path | None) -> int:
    """Runs a program and returns its exit code: 0, or 130 after an interrupt; exits with 2 on a user's mistake."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with user_errors():
        try:
            if out and out.exists() and not out.is_dir():
                raise UserError(f"--out {out}: this is a file, a folder was expected")
            program()
        except KeyboardInterrupt:
            print("\nstopped; the same command continues the run" if out else "\nstopped", file=sys.stderr)
            return INTERRUPTED
    return 0


@contextmanager
def started(device: str, out: Path | None) -> Iterator[tuple["Process", Path]]:
    """Joins the processes of ``torchrun``, ``deepspeed``, ``mpirun`` or ``srun``, and locks the run's folder.

    Yields this process, and ``out`` or a temporary folder; raises UserError where the folder can't be written.
    """
    from anomalygpt import distributed
    from anomalygpt.model.build import choose_device

    with ExitStack() as stack:
        distributed.adopt_launcher_environment()
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            process = distributed.Process(0, 0, 1, choose_device(device))
        else:
            # The first process to finish its cells waits for the last.
            process = distributed.start(device.partition(":")[0], timeout=timedelta(days=30))
            stack.callback(distributed.stop)
            if out is None:
                raise UserError("several processes need a folder that all of them can access: name one, --out DIR")
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="anomalygpt_eval_")))
        if out:
            distributed.on_main(process.is_main, lambda: stack.enter_context(claimed(folder, "--out")))
        try:
            yield process, folder
        except OSError as error:
            raise UserError(f"{folder}: can't be written ({error.strerror or error})") from error


def build_predictor(
    config: "ExperimentConfig", process: "Process", *, with_llm: bool, needs_text_map: bool
) -> "Predictor":
    """The predictor in the geometry of the paper's evaluation; ``needs_text_map``: also used without references."""
    import torch

    from anomalygpt.datasets.photos import configure
    from anomalygpt.inference.predictor import Predictor

    configure(config.data)
    torch.manual_seed(config.seed)  # parts without a delta are random, and must be equal in all processes
    predictor = Predictor.from_config(config, str(process.device), with_llm=with_llm)
    predictor.use_evaluation_geometry()
    if not config.deltas and (with_llm or needs_text_map):
        message = "warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights"
        logging.getLogger(__name__).warning(message)
    return predictor
