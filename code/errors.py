"""Mistakes of the user, which end in one line, not in a traceback."""

import difflib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

LESS_MEMORY = "llm.precision=4bit, a smaller --batch-size or the device cpu need less; answers can be left out"


class UserError(Exception):
    """A mistake that the user can correct; the message says what is wrong, where, and what to do."""


@contextmanager
def reading(path: Path, what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns what decoders raise, which on damaged bytes is nearly anything, into one line, an error of a ``kind``."""
    try:
        yield
    except FileNotFoundError:
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        raise kind(f"{path}: {link}") from None
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__
        raise kind(f"{path}: cannot be read as {what} ({reason[:200]})") from error


def first_line(error: Exception) -> str:
    """An error's message without what libraries append to it; its class's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def first_offenders(offenders: Iterable[object]) -> str:
    """The first few offenders and how many more there are, for an error's one line."""
    listed = [*map(str, offenders)]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


_strict = False
_warned: set[str] = set()
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def set_strict(strict: bool) -> None:
    """Whether :func:`reading_warning` raises; also makes it print earlier messages anew."""
    global _strict
    _strict = strict
    _warned.clear()


def reading_warning(message: str, group: str = "") -> None:
    """Prints ``warning: message`` on standard error: how a file was read may not be what was meant.

    Each message is printed once, and of one ``group`` the first; after ``set_strict(True)`` it is a :class:`UserError`.
    """
    if _strict:
        raise UserError(message)
    if (collected := _collected.get()) is not None:
        collected.append(message)
    elif (group or message) not in _warned:
        _warned.add(group or message)
        print(f"warning: {message}{' (further ones like this are not listed)' if group else ''}", file=sys.stderr)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The messages of :func:`reading_warning` in the block, which are not printed."""
    token = _collected.set(messages := list[str]())
    try:
        yield messages
    finally:
        with suppress(ValueError):  # a generator that goes on in another context
            _collected.reset(token)


@contextmanager
def full_gpu(advice: str = LESS_MEMORY) -> Iterator[None]:
    """Turns PyTorch's error about a GPU's full memory into a :class:`UserError`: what was asked for, what is free."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # a class of PyTorch, which takes a second to import
            raise
        # "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of … of which … is free. …"
        asked = ". ".join(str(error).split(". ")[:3]).rstrip(".")
        raise UserError(f"{asked}. {advice}") from error


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a :class:`UserError`, and a full GPU, into a line on standard error and exit code 2.

    A reader of standard output that goes away, such as ``| head``, ends the program with exit code 1.
    """
    logging.basicConfig(format="%(message)s")  # not below WARNING, unless a program sets it so
    try:
        with full_gpu():
            yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        raise SystemExit(1) from None
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(known)}"
