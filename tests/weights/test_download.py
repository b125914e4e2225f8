"""The downloader against a server that cuts, forgets and lies."""

import hashlib
from pathlib import Path

import pytest

from anomalygpt.weights.download import download
from anomalygpt.weights.sources import SourceError

CONTENT = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_file_arrives_whole(server, tmp_path: Path) -> None:
    download(server.serve("/file", CONTENT), tmp_path / "deep" / "file", DIGEST)
    assert (tmp_path / "deep" / "file").read_bytes() == CONTENT
    assert not list(tmp_path.rglob("*.part"))


def test_cut_download_goes_on_where_it_stopped(server, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT, cuts=[300_000, 100_000])
    download(url, tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    first, *resumed = server.downloads_of("/file")
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in resumed]
    assert first == ""
    assert 200_000 < starts[0] <= 300_000 < starts[1] <= 400_000


def test_part_of_a_killed_run_is_completed(server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:777])
    download(server.serve("/file", CONTENT), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.downloads_of("/file") == ["bytes=777-"]


def test_part_that_is_already_whole_is_only_checked(server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    download(server.serve("/file", CONTENT), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_server_without_ranges_sends_all_again(server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 500)
    download(server.serve("/file", CONTENT, ranges=False), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_digest_is_refused_and_nothing_is_left(server, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT[:-1] + b"!")
    with pytest.raises(SourceError) as refusal:
        download(url, tmp_path / "file", DIGEST)
    actual = hashlib.sha256(CONTENT[:-1] + b"!").hexdigest()
    assert all(word in str(refusal.value) for word in ("file", DIGEST, actual, "Try again"))
    assert list(tmp_path.iterdir()) == []


def test_line_that_never_brings_a_byte_ends_in_words(server, tmp_path: Path) -> None:
    url = server.serve("/file", CONTENT, cuts=[0] * 10)
    with pytest.raises(SourceError, match="file could not be downloaded"):
        download(url, tmp_path / "file", DIGEST)
    assert len(server.downloads_of("/file")) <= 4


def test_error_status_is_named(server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="404"):
        download(server.url + "/nothing", tmp_path / "file", DIGEST)


@pytest.mark.usefixtures("no_proxy")
def test_address_where_nobody_listens_ends_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="could not be downloaded"):
        download("http://127.0.0.1:9/file", tmp_path / "file", DIGEST)


def test_file_url_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(CONTENT)
    download((tmp_path / "a b").as_uri(), tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_file_url_of_a_missing_file_ends_in_words(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        download((tmp_path / "nothing").as_uri(), tmp_path / "file", DIGEST)
