"""A camera's drop folder: photos as they arrive, and results that are posted to a web service."""

import json
import logging
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from anomalygpt.datasets.records import IMAGE_SUFFIXES
from anomalygpt.errors import reading_warning
from anomalygpt.inference.report import Result

logger = logging.getLogger(__name__)

INTERVAL = 0.5  # seconds between two looks at a folder, over which a complete file does not change
PAUSES = (1, 4, 0)  # seconds after each try to post a result
TIMEOUT = 10  # seconds

Version = dict[str, float]  # "bytes" and "modified", by which a file that is overwritten counts as a new one


def new_photos(folder: Path, done: Iterable[Result], recursive: bool, out: Path) -> Iterator[dict[Path, Version]]:
    """Yields the complete photos in a folder that are new, with their versions, for ever.

    Args:
        done: earlier results; each has its photo's version.
        recursive: whether photos in sub-folders count.
        out: where results are written; photos there do not count.
    """
    known = {(each["photo"], each.get("bytes"), each.get("modified")) for each in done}
    before: dict[Path, Version] = {}
    while True:
        if not folder.is_dir():
            reading_warning(f"{folder}: not there any more; waiting for it")
        now: dict[Path, Version] = {}
        for path in folder.rglob("*") if recursive else folder.glob("*"):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.parent != out:
                with suppress(OSError):  # gone again
                    state = path.stat()
                    now[path] = {"bytes": state.st_size, "modified": state.st_mtime}
        new = {path: version for path, version in now.items() if (str(path), *version.values()) not in known}
        complete = {path: version for path, version in new.items() if version["bytes"] and before.get(path) == version}
        if complete:
            known |= {(str(path), *version.values()) for path, version in complete.items()}
            yield dict(sorted(complete.items(), key=lambda each: each[1]["modified"]))
        before = now
        time.sleep(INTERVAL)


class Webhook:
    """Posts results as JSON, in order, in a thread of its own; each is tried a few times."""

    def __init__(self, url: str) -> None:
        self.url, self.unsent = url, 0
        self._pool = ThreadPoolExecutor(1)

    def send(self, result: Result) -> None:
        """Returns at once."""
        self.unsent += 1
        self._pool.submit(self._post, json.dumps(result).encode())

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        for pause in PAUSES:
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT):
                    self.unsent -= 1
                    return
            except (OSError, HTTPException) as error:
                problem = error
                time.sleep(pause)
        logger.warning("warning: --post %s: %s", self.url, problem)

    def close(self, *, at_once: bool) -> None:
        """Waits for what is not sent yet, unless it shall end ``at_once``, and reports what was not."""
        self._pool.shutdown(cancel_futures=at_once)
        if self.unsent:
            logger.warning("warning: --post %s: %d results were not sent; --out has them", self.url, self.unsent)
