"""Photos shared out among processes, measured, kept while they go by, and added up."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from anomalygpt import distributed
from anomalygpt.evaluation.protocol import Cell
from anomalygpt.evaluation.state import Kept, State

SAVE_EVERY = 30.0  # seconds: what a kill can cost

K = TypeVar("K", bound=Kept)


@dataclass(frozen=True)
class Share:
    """This process's share of the photos: every ``count``-th, from ``number`` on."""

    number: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process adds up."""
        return self.number == 0


@dataclass(frozen=True)
class Work:
    """How the photos of a cell are measured.

    Attributes:
        prepare: called before the first photo, where this process has any.
        on_photo: called after each photo of this process.
        save_every: seconds.
    """

    prepare: Callable[[], object] = lambda: None
    on_photo: Callable[[], object] = lambda: None
    save_every: float = SAVE_EVERY


def measure_shared(
    state: State[K], cell: Cell, names: Sequence[str], share: Share, measure: Callable[[K, str], None], work: Work
) -> K | None:
    """Measures what is not measured yet of a cell, and adds it up; None on all processes but the first.

    All processes must come here with the same cell and names.

    Args:
        names: of all photos.
        measure: adds one photo, by its name, to what this process keeps; nothing of it where it raises.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; what was measured is kept.
        UserError: the state is damaged.
        OSError: the state can't be written.
    """
    done = state.finished(cell)
    if done is None:
        _measure_share(state, cell, names, share, measure, work)
        distributed.barrier()
        done = state.finish(cell) if share.is_main else None
        distributed.barrier()
    return done if share.is_main else None


def _measure_share(
    state: State[K], cell: Cell, names: Sequence[str], share: Share, measure: Callable[[K, str], None], work: Work
) -> None:
    parts = state.parts(cell)
    earlier = state.measured(cell)
    distributed.barrier()  # every process has seen the same parts before the first one writes another
    mine = [name for name in names if name not in earlier][share.number :: share.count]
    number = max(parts, default=-1) + 1 + share.number
    if not mine:
        return
    work.prepare()
    part, saved, count, whole = state.empty(), time.monotonic(), 0, True
    with _stops_between_photos() as stop:
        try:
            for name in mine:
                started, whole = time.monotonic(), False
                measure(part, name)
                count, whole = count + 1, True
                part.seconds += time.monotonic() - started
                work.on_photo()
                if stop.is_set():
                    raise KeyboardInterrupt
                if time.monotonic() - saved >= work.save_every:
                    state.write_part(cell, number, part)
                    saved = time.monotonic()
        except Exception:  # of a photo that can't be measured nothing is in
            whole = True
            raise
        finally:  # what a signal or an unreadable photo stops is not lost
            if count and whole:
                state.write_part(cell, number, part)


@contextmanager
def _stops_between_photos() -> Iterator[threading.Event]:
    """What SIGINT or SIGTERM sets, so that no photo is left half counted; the second one stops at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        for number in earlier:
            signal.signal(number, signal.default_int_handler)

    # Only the main thread may set handlers.
    on_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if on_main_thread else ()
    earlier = {number: signal.signal(number, ask) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
