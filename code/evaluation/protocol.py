"""What is measured: zero-shot, or against K good photos in one or more rounds (AnomalyGPT section 4)."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from anomalygpt.datasets.records import ImageRecord, first_offenders
from anomalygpt.errors import UserError

PAPER_SHOTS = 4  # the paper draws 1, 2 or 4 references, and starts each round four photos further on

ReferenceChoice = Literal["paper", "random"]


@dataclass(frozen=True)
class Cell:
    """The unit of work: one class in one round with K references. Zero-shot has the single round 0."""

    shots: int
    round: int
    class_name: str


@dataclass(frozen=True)
class Plan:
    """Which cells, and which photos are references.

    Attributes:
        shots: numbers of references, 0 for none.
        rounds: by number; zero-shot takes one, whatever they are.
        choice: ``paper`` takes numbers ``4 * round + k`` of the sorted good training photos, ``random`` draws.
        seed: of the random choice and of sampled answers.
    """

    shots: tuple[int, ...]
    rounds: tuple[int, ...] = (0,)
    choice: ReferenceChoice = "paper"
    seed: int = 0

    def cells(self, records: Sequence[ImageRecord]) -> list[Cell]:
        """Every cell, round after round, so that a run that is stopped early has whole rounds."""
        class_names = sorted({record.class_name for record in records})
        return [
            Cell(shots, round_, name)
            for shots in self.shots
            for round_ in (self.rounds if shots else (0,))
            for name in class_names
        ]

    def references(self, records: Sequence[ImageRecord], cell: Cell) -> list[ImageRecord]:
        """The reference photos of a cell.

        Raises:
            UserError: there are too few good training photos.
        """
        own = of_class(records, cell.class_name)
        if self.choice == "paper":
            return reference_records(own, cell.shots, cell.round)
        good = _good_training_photos(own, cell.shots)
        # The same photos for the same class, K, round and seed.
        rng = np.random.default_rng([self.seed, cell.round, cell.shots, zlib.crc32(cell.class_name.encode())])
        return [good[number] for number in sorted(rng.permutation(len(good))[: cell.shots])]


def of_class(records: Sequence[ImageRecord], class_name: str) -> list[ImageRecord]:
    """A class's photos."""
    return [record for record in records if record.class_name == class_name]


def test_photos(records: Sequence[ImageRecord], class_name: str) -> list[ImageRecord]:
    """A class's test photos."""
    return [record for record in of_class(records, class_name) if record.split == "test"]


def reference_records(records: Sequence[ImageRecord], shots: int, round: int = 0) -> list[ImageRecord]:
    """The K good training photos of a round: numbers ``4 * round + k`` of the list sorted by path, k < K.

    With more than four shots a round takes K photos on, so that rounds never share one.

    Args:
        records: of one class.
        shots: K; 0 takes none.

    Raises:
        UserError: there are too few good training photos.
    """
    start = max(PAPER_SHOTS, shots) * round
    return _good_training_photos(records, start + shots if shots else 0)[start : start + shots]


def _good_training_photos(records: Sequence[ImageRecord], needed: int) -> list[ImageRecord]:
    good = [record for record in records if record.split == "train" and not record.is_anomalous]
    if needed > len(good):
        name = records[0].class_name if records else "this class"
        advice = "" if good else "; photos without a training split can be measured with --shots 0 alone"
        raise UserError(f"{name}: the references need {needed} good training photos, there are {len(good)}{advice}")
    return sorted(good, key=lambda record: record.image)


def check(plan: Plan, records: Sequence[ImageRecord]) -> None:
    """Checks, before a model is loaded, what can be known to fail.

    Raises:
        UserError: a class has no test photo, or too few references for a round.
    """
    names = sorted({record.class_name for record in records})
    without = [name for name in names if not test_photos(records, name)]
    if without or not names:
        raise UserError(f"no test photos of {first_offenders(without) or 'any class'}")
    for cell in plan.cells(records):
        plan.references(records, cell)


def photo_name(record: ImageRecord, root: Path) -> str:
    """A photo's path below the data's root, with slashes: what results call it."""
    return Path(os.path.relpath(record.image, root)).as_posix()


def photo_seed(seed: int, cell: Cell, photo: str) -> int:
    """A seed for one photo, so that sampled answers do not depend on the process, or the run, that measures it."""
    return zlib.crc32(f"{seed}/{cell.shots}/{cell.round}/{photo}".encode())
