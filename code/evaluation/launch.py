"""The options of ``run_eval.py`` and ``run_mmad.py``, and how these programs end."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from anomalygpt.errors import user_errors
from anomalygpt.files import writing


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from ``minimum`` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {minimum} or more")
        return int(text)

    return parse


def parse(parser: argparse.ArgumentParser, program: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses a program's own options and those of both; ``command`` is what was typed."""
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the results, and for the state that a later run continues")
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--seed", type=whole_number(0), help="of references and answers (default: config's)")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(words)
    arguments.command = shlex.join(["python", program, *words])
    arguments.set += [] if arguments.seed is None else [f"seed={arguments.seed}"]
    return arguments


@contextmanager
def ending_in_one_line(out: Path | None) -> Iterator[None]:
    """Exits with a line and code 2 on a user's mistake or a full disk, with 130 on an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with user_errors(), writing(out or Path()):
        try:
            yield
        except KeyboardInterrupt:
            print("\nstopped; the same command continues the run" if out else "\nstopped", file=sys.stderr)
            raise SystemExit(130) from None  # as of shells after Ctrl-C
