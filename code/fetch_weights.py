"""Fetches the compact model's weights: `python fetch_weights.py [names] [--root FOLDER] [--offline]`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.errors import user_errors

COMPACT = ("dinov2_vits14", "smollm2_135m_instruct")


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches what is missing and prints a line for each weight; 1 when one could not be had, 2 after a mistake."""
    from anomalygpt.config.load import PRETRAINED, resolve
    from anomalygpt.weights.sources import SOURCES_FILE

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=COMPACT, help=f"weights to fetch (default: {' '.join(COMPACT)})")
    parser.add_argument("--root", type=Path, default=resolve(PRETRAINED), help="weights folder (default: %(default)s)")
    parser.add_argument("--offline", action="store_true", help="only say what is there, fetch nothing")
    parser.add_argument("--sources", type=Path, default=SOURCES_FILE, help="another table of sources, say of a mirror")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The HTTP libraries' own request lines would bury ours.
    for noisy in ("httpx", "httpx2", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with user_errors():
        return _fetch(arguments)


def _fetch(arguments: argparse.Namespace) -> int:
    from anomalygpt.weights.fetch import WeightsUnavailable, ensure, look_up, read_manifest
    from anomalygpt.weights.sources import load_sources

    sources = load_sources(arguments.sources)
    # A misspelt name is reported before anything is downloaded.
    weights = {name: look_up(name, sources) for name in arguments.names}
    failed = 0
    for name, weight in weights.items():
        try:
            path = ensure(name, arguments.root, offline=arguments.offline, sources=sources)
        except WeightsUnavailable as error:
            print(error, file=sys.stderr)
            failed = 1
        else:
            folder = arguments.root / weight.folder
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
            source = read_manifest(folder).get("source", "files put there by hand")
            print(f"{path}  {size:.0f} MiB  {weight.licence}  from {source}")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
