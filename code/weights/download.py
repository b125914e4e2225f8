"""Downloads one file: resumes after a cut, shows progress, and keeps nothing whose SHA-256 is wrong."""

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests
from tqdm import tqdm

from anomalygpt.weights.sources import SourceError

logger = logging.getLogger(__name__)

# What goes wrong on this machine rather than on the way: another source would not help.
LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)

_CHUNK_BYTES = 1 << 20
# Smaller on the line: the chunk in which the connection breaks is lost.
_LINE_CHUNK_BYTES = 1 << 16
# Seconds to connect, and seconds without a single byte.
_TIMEOUT = (10.0, 60.0)
_ATTEMPTS = 4


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, destination: Path, sha256: str) -> None:
    """Brings `url` (http, https or file) to `destination`, which appears only once it is complete and right.

    Bytes gather in `<destination>.part`; a later call goes on from there, also in another process.

    Raises:
        SourceError: not reachable, refused, cut off again and again, or the SHA-256 differs.
        OSError: the disk is full or not writable.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(destination.name + ".part")
    if urlsplit(url).scheme == "file":
        _copy_local(url, part)
    else:
        _fetch_with_retries(url, part, destination.name)
    check_sha256(part, sha256, shown_as=destination.name)
    part.replace(destination)


def _copy_local(url: str, part: Path) -> None:
    place = url2pathname(unquote(urlsplit(url).path))
    try:
        shutil.copyfile(place, part)
    except FileNotFoundError as error:
        raise SourceError(f"{place} is not there") from error


def check_sha256(path: Path, expected: str, shown_as: str) -> None:
    """Removes the file and says so when it is not the one that was pinned.

    Raises:
        SourceError: names the file, both digests and what to do.
    """
    actual = sha256_of(path)
    if actual == expected:
        return
    size = path.stat().st_size
    path.unlink()
    raise SourceError(
        f"{shown_as} is corrupt: its SHA-256 should be {expected}, but the {size} bytes received have "
        f"{actual}. The file was removed. Try again; if it happens twice, a proxy or mirror "
        "between here and the source changes the file"
    )


def _fetch_with_retries(url: str, part: Path, label: str) -> None:
    """Asks for what is still missing until all is there; a try that brought new bytes doesn't count."""
    failures = 0
    while True:
        before = _size(part)
        try:
            return _fetch_rest(url, part, label)
        except requests.HTTPError as error:
            raise SourceError(f"{label}: the server answered {error.response.status_code}") from error
        except requests.RequestException as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= _ATTEMPTS or isinstance(error, requests.exceptions.ConnectTimeout):
                raise SourceError(f"{label} could not be downloaded ({_reason(error)})") from error
            logger.info("%s: the connection broke after %d bytes, going on from there", label, _size(part))


def _fetch_rest(url: str, part: Path, label: str) -> None:
    """One request, for the bytes that `part` lacks.

    Raises:
        requests.RequestException: no answer, an error status, or fewer bytes than announced.
    """
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # Compression would make byte ranges mean something else.
    if have:
        headers["Range"] = f"bytes={have}-"
    with _session().get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # Nothing is left to send: all bytes are here, and the SHA-256 will judge them.
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = have if resumed else 0  # A server that ignores ranges sends the file from its first byte.
        rest = int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as stream, _progress_bar(label, start, start + rest) as bar:
            for chunk in response.iter_content(_LINE_CHUNK_BYTES):
                stream.write(chunk)
                bar.update(len(chunk))
    if rest and _size(part) < start + rest:
        raise requests.ConnectionError(f"{start + rest - _size(part)} bytes are missing")


def _progress_bar(label: str, start: int, total: int) -> "tqdm[NoReturn]":
    # `disable=None` shows the bar on terminals only: log files stay readable.
    return tqdm(desc=label, initial=start, total=total or None, unit="B", unit_scale=True, disable=None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """The innermost cause in one line: `requests` wraps it in several layers of addresses and object ids."""
    inner: BaseException = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
    return str(inner).splitlines()[0] if str(inner) else type(inner).__name__


@cache
def _session() -> requests.Session:
    """A session with the certificates and the proxy that pip uses: where pip works, this should work."""
    session = requests.Session()
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "SSL_CERT_FILE"):
        if os.environ.get(variable):
            session.verify = os.environ[variable]
            break
    else:
        session.verify = _pip_setting("global.cert") or True
    proxy = _pip_setting("global.proxy")
    if proxy and not requests.utils.get_environ_proxies("https://example.org"):
        session.proxies = {"http": proxy, "https": proxy}
    return session


def _pip_setting(name: str) -> str:
    """A value of pip's configuration, empty when it is not set or pip is not there."""
    command = [sys.executable, "-m", "pip", "config", "get", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""
