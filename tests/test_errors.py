"""Lines for the user: errors and warnings about how files were read."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from anomalygpt.errors import LESS_MEMORY, UserError, reading_warning, set_strict, user_errors

CODE = Path(__file__).resolve().parents[1] / "code"


@pytest.fixture(autouse=True)
def lenient() -> Iterator[None]:
    set_strict(False)
    yield
    set_strict(False)


def test_reading_warning_is_printed_once_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("a.png: 12 bits", "b.png: 12 bits", "a.png: 12 bits"):
        reading_warning(message)
    assert capsys.readouterr().err == "warning: a.png: 12 bits\nwarning: b.png: 12 bits\n"
    set_strict(False)
    reading_warning("a.png: 12 bits")
    assert capsys.readouterr().err == "warning: a.png: 12 bits\n", "another run"


def test_strict_reading_raises_every_time(capsys: pytest.CaptureFixture[str]) -> None:
    set_strict(True)
    for _ in range(2):
        with pytest.raises(UserError, match="12 bits"):
            reading_warning("a.png: 12 bits")
    assert capsys.readouterr().err == ""


def test_only_the_first_warning_of_a_group_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        reading_warning(f"{number}.png: 12 bits", group="photos: bits")
    assert capsys.readouterr().err == "warning: 0.png: 12 bits (further ones like this are not listed)\n"


def test_reader_that_goes_away_ends_the_program_without_a_traceback() -> None:
    source = "from anomalygpt.errors import user_errors\nwith user_errors():\n    for n in range(100_000): print(n)"
    with subprocess.Popen([sys.executable, "-c", source], cwd=CODE, stdout=PIPE, stderr=PIPE) as run:
        assert run.stdout and run.stderr
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1


def test_a_full_gpu_is_one_line_with_what_was_asked_for_and_what_is_free(capsys):
    words = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB of which 1 GiB is free"
    with pytest.raises(SystemExit) as stopped, user_errors():
        raise torch.OutOfMemoryError(f"{words}. Including non-PyTorch memory, this process has 7 GiB in use.")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {words}. {LESS_MEMORY}\n"
