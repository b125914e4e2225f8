"""Photos shared out among processes, measured, kept while they go by, and added up."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anomalygpt.evaluation.protocol import Cell
from anomalygpt.evaluation.state import Kept, State
from anomalygpt.training import distributed

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
        measure: adds one photo, by its name, to what this process keeps.

    Raises:
        StateError: the state is damaged.
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
    part, saved, count = state.empty(), time.monotonic(), 0
    if mine:
        work.prepare()
    try:
        for name in mine:
            started = time.monotonic()
            measure(part, name)
            count += 1
            part.seconds += time.monotonic() - started
            work.on_photo()
            if time.monotonic() - saved >= work.save_every:
                state.write_part(cell, number, part)
                saved = time.monotonic()
    finally:  # what Ctrl-C or an unreadable photo stops is not lost
        if count:
            state.write_part(cell, number, part)
