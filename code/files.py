"""Files that appear whole or not at all, and folders that one run at a time writes to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anomalygpt.errors import UserError

LOCK = ".lock"
SHOWN = 40  # letters of a file's name in that of its temporary file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, to write to; it takes the path's place once the block has ended well.

    Raises:
        OSError: the folder can't be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name's beginning tells whose it is; with all of a long one the temporary name would be longer than may be.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:SHOWN]}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp keeps files to their owner
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, option: str) -> Iterator[None]:
    """Keeps a second run out of a folder while the block lasts; with the process, however it ends, the claim ends, too.

    Args:
        option: by which the user chose the folder.

    Raises:
        UserError: another process has claimed it, or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error}); choose another {option}") from error
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder}: another run is writing there; wait until it has ended, or choose another {option}"
        ) from None
    except (OSError, NotImplementedError):  # some network file systems have no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
