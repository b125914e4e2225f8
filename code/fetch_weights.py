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
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The HTTP libraries' own request lines would bury ours.
    for noisy in ("httpx", "httpx2", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with user_errors():
        return _fetch(arguments)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from anomalygpt.config.load import PRETRAINED, resolve
    from anomalygpt.weights.sources import SOURCES_FILE

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=COMPACT, help=f"weights to fetch (default: {' '.join(COMPACT)})")
    parser.add_argument("--root", type=Path, default=resolve(PRETRAINED), help="weights folder (default: %(default)s)")
    parser.add_argument("--offline", action="store_true", help="only say what is there, fetch nothing")
    parser.add_argument("--sources", type=Path, default=SOURCES_FILE, help="another table of sources, say of a mirror")
    return parser.parse_args(argv)


def _fetch(arguments: argparse.Namespace) -> int:
    from anomalygpt.weights.fetch import WeightsUnavailable, ensure, look_up
    from anomalygpt.weights.sources import load_sources

    sources = load_sources(arguments.sources)
    for name in arguments.names:  # a misspelt one is told before another is downloaded
        look_up(name, sources)
    failed = 0
    for name in arguments.names:
        try:
            path = ensure(name, arguments.root, offline=arguments.offline, sources=sources)
        except WeightsUnavailable as error:
            print(error, file=sys.stderr)
            failed = 1
        else:
            print(_describe(path, arguments.root / sources[name].folder, sources[name].licence))
    return failed


def _describe(path: Path, folder: Path, licence: str) -> str:
    """`path  size  licence  source` of one weight."""
    from anomalygpt.weights.store import read_manifest

    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    source = read_manifest(folder).get("source", "files put there by hand")
    return f"{path}  {size:.0f} MiB  {licence}  from {source}"


if __name__ == "__main__":
    raise SystemExit(main())
