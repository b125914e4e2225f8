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

PAPER_SHOTS = 4  # the paper uses 1, 2 or 4 references, and each round starts four photos after the last

ReferenceChoice = Literal["paper", "random"]


@dataclass(frozen=True)
class Cell:
    """The unit of work: one class in one round with K references. Zero-shot has the single round 0."""

    shots: int
    round: int
    class_name: str


@dataclass(frozen=True)
class Plan:
    """Which cells are measured, and which photos are references.

    Attributes:
        choice: ``paper`` takes numbers ``4 * round + k`` of the good training photos, sorted by path, k < K. For
            K > 4 they are ``K * round + k``, so that no two rounds share a photo. ``random`` draws.
        seed: of the random choice and of sampled answers.
    """

    shots: tuple[int, ...]
    rounds: tuple[int, ...] = (0,)
    choice: ReferenceChoice = "paper"
    seed: int = 0

    def cells(self, records: Sequence[ImageRecord]) -> list[Cell]:
        """Every cell, round after round, so that a run that is stopped early has complete rounds."""
        class_names = sorted({record.class_name for record in records})
        rounds = [(shots, number) for shots in self.shots for number in (self.rounds if shots else (0,))]
        return [Cell(*of_round, name) for of_round in rounds for name in class_names]

    def references(self, records: Sequence[ImageRecord], cell: Cell) -> list[ImageRecord]:
        """The reference photos of a cell; raises UserError where there are too few good training photos."""
        own = [record for record in records if record.class_name == cell.class_name]
        good = [record for record in own if record.split == "train" and not record.is_anomalous]
        good.sort(key=lambda record: record.image)
        shots = cell.shots
        start = max(PAPER_SHOTS, shots) * cell.round if shots and self.choice == "paper" else 0
        if start + shots > len(good):
            advice = "" if good else "; photos without a training split can be measured with --shots 0 alone"
            needed = f"the references need {start + shots} good training photos, there are {len(good)}"
            raise UserError(f"{cell.class_name}: {needed}{advice}")
        if self.choice == "random":
            # The same photos for the same class, K, round and seed.
            rng = np.random.default_rng([self.seed, cell.round, shots, zlib.crc32(cell.class_name.encode())])
            return [good[number] for number in sorted(rng.permutation(len(good))[:shots])]
        return good[start : start + shots]

    @property
    def good_photos_needed(self) -> int:
        """How many good training photos the references of all rounds are taken from."""
        most = max(self.shots)
        return max(PAPER_SHOTS, most) * max(self.rounds) + most if most else 0

    def check(self, records: Sequence[ImageRecord]) -> None:
        """Raises UserError where a class has no test photo, or too few references for a round."""
        names = sorted({record.class_name for record in records})
        untested = [name for name in names if not test_photos(records, name)]
        if untested or not names:
            raise UserError(f"no test photos of {first_offenders(untested) or 'any class'}")
        for cell in self.cells(records):
            self.references(records, cell)


def test_photos(records: Sequence[ImageRecord], class_name: str) -> list[ImageRecord]:
    """A class's test photos."""
    return [record for record in records if record.class_name == class_name and record.split == "test"]


def photo_name(record: ImageRecord, root: Path) -> str:
    """A photo's path relative to the data's root, with slashes: its name in the results."""
    return Path(os.path.relpath(record.image, root)).as_posix()


def photo_seed(seed: int, cell: Cell, photo: str) -> int:
    """A seed per photo, so that sampled answers do not depend on the process or run that measures it."""
    return zlib.crc32(f"{seed}/{cell.shots}/{cell.round}/{photo}".encode())
