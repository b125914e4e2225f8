"""The Hugging Face hub as a server on this machine, and the package index as a folder of wheels for pip."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Hub:
    """A server with some files.

    Attributes:
        files: content and declared SHA-256 of each path.
        requests: (method, path) of all that came.
        stall: while it is set, answers stop in the middle, for a test that kills the client meanwhile.
    """

    url: str
    files: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    stall: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def serve(self, repo: str, name: str, content: bytes, declared: str = "") -> None:
        for revision in ("main", COMMIT):
            self.files[f"/{repo}/resolve/{revision}/{name}"] = (content, declared or sha256(content))

    def downloads(self) -> list[str]:
        return [path for method, path in self.requests if method == "GET"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Silent: pytest shows what the tests say, not the server."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path))
        content, declared = self.hub.files.get(path, (b"", ""))
        self.send_response(200 if declared else 404)
        self.send_header("Content-Length", str(len(content)))
        if declared:  # a large file: its SHA-256 is in X-Linked-Etag
            self.send_header("ETag", '"pointer"')
            self.send_header("X-Linked-Etag", f'"{declared}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        try:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if self.hub.stall.is_set():
                self.hub.released.wait(60)
            self.wfile.write(content[len(content) // 2 :])
        except OSError:  # the client was killed
            self.close_connection = True


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Starts the server, which is the hub of all processes that the test starts."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for variable in ("NO_PROXY", "no_proxy"):  # the second one wins where both are set
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", handler.hub.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    yield handler.hub  # type: ignore[attr-defined]
    handler.hub.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, the only place where pip looks for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, package: str, version: str, member: str, content: bytes) -> Path:
    """A wheel with one file."""
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    info = f"{package}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel
