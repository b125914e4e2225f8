"""Fetches the compact model's weights: `python fetch_weights.py [names] [--root FOLDER]`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.errors import UserError, did_you_mean, user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches what is missing and prints a line for each weight; 1 when one could not be had, 2 after a mistake."""
    from anomalygpt.config.load import PRETRAINED, resolve
    from anomalygpt.weights.fetch import WeightsUnavailable, ensure, load_sources

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="weights to fetch (default: all in the table of sources)")
    parser.add_argument("--root", type=Path, default=resolve(PRETRAINED), help="weights folder (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.getLogger("anomalygpt").setLevel(logging.INFO)
    failed = 0
    with user_errors():
        sources = load_sources()
        for name in arguments.names:
            if name not in sources:
                raise UserError(f"there is no weight called {name!r}{did_you_mean(name, sorted(sources))}")
        for name in arguments.names or sources:
            try:
                path = ensure(name, arguments.root)
            except WeightsUnavailable as error:
                print(error, file=sys.stderr)
                failed = 1
                continue
            size = sum(file.stat().st_size for file in (arguments.root / name).rglob("*") if file.is_file()) / 2**20
            print(f"{path}  {size:.0f} MiB  {sources[name].licence}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
