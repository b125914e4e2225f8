"""That a test which fails leaves no process behind."""

import subprocess
import sys

import psutil
import pytest

from tests.processes import run, started, wait_until

# As torchrun: what it starts is in a session of its own.
LAUNCHER = """
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(rank.pid, flush=True)
time.sleep(600)
"""


def ended(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_a_command_has_started_ends_with_a_test_that_fails() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        started([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher,
    ):
        rank = int(launcher.stdout.readline())
        assert not ended(rank)
        raise ZeroDivisionError
    assert launcher.returncode != 0
    wait_until(lambda: ended(rank), 10)


def test_what_a_command_has_started_ends_when_it_takes_too_long() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as late:
        run([sys.executable, "-c", LAUNCHER], timeout=5)
    wait_until(lambda: ended(int(late.value.output)), 10)
