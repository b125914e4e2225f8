"""File reading and hashing, atomic file writes, folders that only one run at a time writes to, and sockets."""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout

from anomalygpt.errors import UserError, reading


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises :class:`UserError` where it can't be read, or is not YAML."""
    with reading(path, "YAML"):
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at an address, at any free port where none is named. Raises :class:`UserError`."""
    try:
        return socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        where = f"--host {host} --port {port}" if port else f"--host {host}"
        raise UserError(f"{where}: can't serve there ({error})") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without an incomplete last one; none where there is no file."""
    with reading(path, "JSON lines"):
        *lines, _ = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
        return [json.loads(line) for line in lines]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a :class:`UserError` that names the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error})") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, to write to; it replaces ``path`` if the block ends without an exception."""
    # With all of a long name, the temporary one would be longer than file systems allow.
    temporary = path.with_name(f".{path.name[:40]}.{uuid4().hex}{path.suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.chmod(0o644)  # some libraries let only the owner read
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_files(folder: Path, contents: Mapping[str, Any]) -> None:
    """Writes texts, or else JSON, by name atomically into a folder, CSV with the mark that Excel needs."""
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8-sig" if name.endswith(".csv") else "utf-8")


@contextmanager
def claimed(folder: Path, option: str) -> Iterator[None]:
    """Makes a folder, locked against a second run while the block lasts; errors name the ``option``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error}); choose another {option}") from error
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(folder / ".lock", timeout=0))
        except Timeout:
            advice = f"wait until it has ended, or choose another {option}"
            raise UserError(f"{folder}: another run is writing there; {advice}") from None
        except (OSError, NotImplementedError):
            pass  # some network file systems have no locks
        yield
