"""Commands that tests start. None outlives its test, even after a failure, a timeout or Ctrl-C."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

GRACE_SECONDS = 10


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen]:
    """Starts a command in a new session; it ends with the block, and so does all that it has started.

    Args:
        options: for :class:`subprocess.Popen`.
    """
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        _end(process)


@contextmanager
def serving(app: Any, **settings: Any) -> Iterator[str]:
    """Runs an ASGI application in a thread, which ends with the block; yields its address.

    Args:
        settings: for :class:`uvicorn.Config`.
    """
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **settings))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


def run(command: Sequence[str], timeout: float, **options: Any) -> subprocess.CompletedProcess:
    """As ``subprocess.run(command, capture_output=True, text=True, timeout=…)``, which kills the command alone.

    Raises:
        subprocess.TimeoutExpired: it takes longer, in seconds.
    """
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def wait_until(happened: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds.

    Raises:
        TimeoutError: it did not happen.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened in {seconds:.0f} s")
        time.sleep(0.05)


def _end(process: subprocess.Popen) -> None:
    """SIGTERM, so that a launcher ends its ranks; then SIGKILL for what is left, in whatever session it is."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):  # it has ended, and Popen knows
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for left in family:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    process.wait()
