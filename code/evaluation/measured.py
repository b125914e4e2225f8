"""What was measured of a class: a row a photo, pixel counts, examples; added up, written to a file and read back."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from anomalygpt.errors import UserError
from anomalygpt.evaluation.examples import Case, Example, Examples
from anomalygpt.evaluation.pixels import PixelCounts
from anomalygpt.evaluation.truth import MaskRule
from anomalygpt.files import replacing

COUNTS = ("sound", "defective", "overlap")


@dataclass(frozen=True)
class PhotoRow:
    """One test photo.

    Attributes:
        photo: its path below the data's root.
        has_pixels: whether its pixels were counted: good, or with a mask.
        score: the photo's anomaly score.
        threshold: a pixel of the map above it is anomalous.
        probability: that the photo is anomalous, by the score.
        verdict: what the user is told.
        verdict_from: what decided it.
        answer: in words; empty without a language model.
        said: what the answer says; None where it says neither yes nor no, or there is none.
        own_said: what the language model said of itself, before a score that wins set it right.
        positions: of the marked defects, largest first, as the model was shown the photo.
        named: the positions that the answer names, in its order.
        named_holds_defect: whether the first of them holds part of a defect; None where there is no such question.
    """

    photo: str
    defect: str
    is_anomalous: bool
    has_pixels: bool
    score: float
    threshold: float
    probability: float
    verdict: bool
    verdict_from: str
    answer: str
    said: bool | None
    own_said: bool | None
    positions: tuple[str, ...]
    named: tuple[str, ...]
    named_holds_defect: bool | None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PhotoRow":
        """The row that ``asdict`` and JSON made these values of."""
        return cls(**{**values, "positions": tuple(values["positions"]), "named": tuple(values["named"])})


@dataclass(frozen=True)
class Setting:
    """How photos, maps and masks met: what a report has to say beside the numbers.

    Attributes:
        geometry: how photos were brought to the model.
        map_side: of ``Look.model_map``, in pixels.
        mask_rule: a key of ``MASK_RULES``.
        saturated: whether LOCO's saturation counted.
    """

    geometry: str
    map_side: int
    mask_rule: MaskRule
    saturated: bool


@dataclass
class Measured:
    """Some photos of one cell; ``seconds`` is the time that they took. ``setting`` is None for no photo."""

    rows: list[PhotoRow] = field(default_factory=list)
    pixels: PixelCounts = field(default_factory=PixelCounts.empty)
    examples: Examples = field(default_factory=Examples)
    seconds: float = 0.0
    setting: Setting | None = None

    def names(self) -> set[str]:
        """The photos."""
        return {row.photo for row in self.rows}

    def merge(self, other: "Measured") -> None:
        """Adds other photos; everything but ``seconds`` comes out the same in any order once rows are sorted."""
        self.rows = sorted([*self.rows, *other.rows], key=lambda row: row.photo)
        self.pixels.merge(other.pixels)
        self.examples.merge(other.examples)
        self.seconds += other.seconds
        self.setting = self.setting or other.setting

    def write(self, path: Path) -> None:
        """Writes a file, whole or not at all.

        Raises:
            OSError: it can't be written.
        """
        kept = [(case, example) for case, examples in self.examples.cases.items() for example in examples]
        notes = {
            "rows": [asdict(row) for row in self.rows],
            "regions": self.pixels.regions,
            "photos": self.pixels.photos,
            "seconds": self.seconds,
            "setting": asdict(self.setting) if self.setting else None,
            "examples": [(case, example.rank, example.photo) for case, example in kept],
        }
        arrays: dict[str, Any] = {f"strip{n}": np.frombuffer(e.strip, np.uint8) for n, (_, e) in enumerate(kept)}
        for name in COUNTS:
            counts = getattr(self.pixels, name)
            used = np.flatnonzero(counts)
            arrays |= {f"{name}_bins": used.astype(np.int32), f"{name}_counts": counts[used]}
        arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Measured":
        """Reads a file back.

        Raises:
            UserError: it is damaged, or none of ours.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                notes = json.loads(arrays["notes"].tobytes())
                found = cls([PhotoRow.from_json(row) for row in notes["rows"]], seconds=notes["seconds"])
                found.setting = Setting(**notes["setting"]) if notes["setting"] else None
                for name in COUNTS:
                    getattr(found.pixels, name)[arrays[f"{name}_bins"]] = arrays[f"{name}_counts"]
                found.pixels.regions, found.pixels.photos = notes["regions"], notes["photos"]
                for number, (case, rank, photo) in enumerate(notes["examples"]):
                    kept = found.examples.cases[_case(case)]
                    kept.append(Example(rank, photo, arrays[f"strip{number}"].tobytes()))
        # A damaged archive makes NumPy and zipfile raise nearly anything.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: can't be read ({reason}); delete it, its photos are measured again") from error
        return found


def _case(name: str) -> Case:
    for case in get_args(Case):
        if name == case:
            return case
    raise ValueError(f"no case {name!r}")
