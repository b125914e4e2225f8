"""A server on this machine that plays the hub, a package index and a line that breaks."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from anomalygpt.weights import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Answer:
    """What the server says for one path."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    # Send only so many bytes of the next answers, one entry for each answer, then break the connection.
    cuts: list[int] = field(default_factory=list)
    # Wait here in the middle of the answer, for a test that kills the client meanwhile.
    stall: threading.Event | None = None


@dataclass
class LocalServer:
    """`answers` by path; `requests` collects (method, path, Range header) of all that came."""

    url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def serve(self, path: str, content: bytes, **options: object) -> str:
        self.answers[path] = Answer(content, **options)  # type: ignore[arg-type]
        return self.url + path

    def serve_hub_file(self, repo: str, name: str, content: bytes, declared: str = "") -> None:
        """A large file as the hub serves it: the SHA-256 stands in X-Linked-Etag."""
        headers = {"ETag": '"pointer"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
        headers["X-Linked-Etag"] = f'"{declared or sha256(content)}"'
        for revision in ("main", COMMIT):
            self.serve(f"/{repo}/resolve/{revision}/{name}", content, headers=headers)

    def serve_wheel(self, package: str, version: str, member: str, content: bytes) -> bytes:
        """An index with one package, whose metadata can be had without the wheel. Returns the wheel."""
        wheel, metadata = _build_wheel(package, version, member, content)
        name = f"{package}-{version}-py3-none-any.whl"
        link = (
            f'<a href="/files/{name}#sha256={sha256(wheel)}" data-core-metadata="sha256={sha256(metadata)}">{name}</a>'
        )
        self.serve(f"/simple/{package}/", link.encode(), headers={"Content-Type": "text/html"})
        self.serve(f"/files/{name}", wheel)
        self.serve(f"/files/{name}.metadata", metadata)
        return wheel

    def downloads_of(self, ending: str) -> list[str]:
        """The Range headers of the GET requests for paths with this ending."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(ending)]


def _build_wheel(package: str, version: str, member: str, content: bytes) -> tuple[bytes, bytes]:
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode()
    info = f"{package}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue(), metadata


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    local: LocalServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Silent: pytest shows what the tests say, not the server."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        span = self.headers.get("Range", "")
        self.local.requests.append((self.command, path, span))
        answer = self.local.answers.get(path)
        if answer is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self._send_head(answer, span)
        if with_body:
            self._send_body(answer, body)

    def _send_head(self, answer: Answer, span: str) -> bytes:
        content, start = answer.content, 0
        if span and answer.ranges:
            start = int(span.removeprefix("bytes=").split("-")[0])
        if start and start >= len(content):
            self.send_response(416)
            content, start = b"", 0
        elif start:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        return content[start:]

    def _send_body(self, answer: Answer, body: bytes) -> None:
        if answer.cuts:
            body = body[: answer.cuts.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if answer.stall is not None:
                answer.stall.wait(60)
            self.wfile.write(body[len(body) // 2 :])
        except OSError:  # The client was killed.
            self.close_connection = True


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets requests to this machine reach it, whatever proxy the user or pip's configuration names."""
    for variable in ("NO_PROXY", "no_proxy"):  # the second one wins where both are set
        monkeypatch.setenv(variable, "127.0.0.1")
    monkeypatch.delenv("PIP_PROXY", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    download._session.cache_clear()  # it has read the configuration of the test before
    yield
    download._session.cache_clear()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, no_proxy: None) -> Iterator[LocalServer]:
    """Starts the server; pip and the hub's client of this test know nothing else."""
    handler = type("Handler", (_Handler,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    local = LocalServer(url=f"http://127.0.0.1:{http.server_address[1]}")
    handler.local = local  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, daemon=True).start()
    for variable in ("HF_HUB_OFFLINE", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", local.url)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("PIP_INDEX_URL", local.url + "/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    yield local
    http.shutdown()
    http.server_close()


@pytest.fixture
def repository() -> Path:
    """The checkout's root folder."""
    return Path(__file__).resolve().parents[2]
