"""A camera's drop folder: photos as they arrive, and results that are posted to a web service."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from urllib3 import PoolManager, Retry
from urllib3.exceptions import HTTPError

from anomalygpt.datasets.records import IMAGE_SUFFIXES
from anomalygpt.errors import reading_warning
from anomalygpt.inference.report import Result

logger = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds, in which a complete file does not change


def new_photos(
    folder: Path, done: Iterable[Result], recursive: bool, out: Path
) -> Iterator[dict[Path, dict[str, Any]]]:
    """Yields the complete photos in a folder that are new, for ever, each with its size in bytes and its time.

    Args:
        done: earlier results, with these two. A file that was overwritten is a new one.
        recursive: whether photos in sub-folders count.
        out: where results are written; photos there do not count.
    """
    known = {(each["photo"], each.get("bytes"), each.get("modified")) for each in done}
    before: dict[Path, dict[str, Any]] = {}
    while True:
        if not folder.is_dir():
            reading_warning(f"{folder}: not there any more; waiting for it")
        now: dict[Path, dict[str, Any]] = {}
        for path in folder.rglob("*") if recursive else folder.glob("*"):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.parent != out:
                with suppress(OSError):  # gone again
                    state = path.stat()
                    if state.st_size and (str(path), state.st_size, state.st_mtime) not in known:
                        now[path] = {"bytes": state.st_size, "modified": state.st_mtime}
        complete = [path for path in now if before.get(path) == now[path]]
        known.update((str(path), *now[path].values()) for path in complete)
        if complete:
            yield {path: now[path] for path in sorted(complete, key=lambda path: now[path]["modified"])}
        before = now
        time.sleep(INTERVAL)


def post(url: str, result: Result) -> None:
    """Sends a result as JSON; after some tries in vain, a warning says so."""
    retries = Retry(4, backoff_factor=1, status_forcelist=range(400, 600), allowed_methods=None)
    try:
        PoolManager().request("POST", url, json=dict(result), timeout=10, retries=retries)
    except HTTPError as error:
        logger.warning("warning: %s: not sent to --post (%s)", result["photo"], error)
