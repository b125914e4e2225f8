"""What predict.py writes: results line by line, overlays, maps, and at the end a report."""

import codecs
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from PIL import Image

from anomalygpt.datasets.findings import Language
from anomalygpt.datasets.records import MAP, OVERLAY, RESULTS, read_results
from anomalygpt.errors import UserError
from anomalygpt.files import replacing
from anomalygpt.inference.report import Result, report_html, verdict
from anomalygpt.inference.results import Prediction
from anomalygpt.inference.visualize import overlay

TABLE, REPORT = "results.csv", "report.html"
NUMBERS = ("probability", "score", "threshold", "score_threshold", "number", "total_area")
COLUMNS = ("photo", "verdict", "reason", *NUMBERS, "places", "answer", "error", "overlay", "map")


class Outputs:
    """The folder of ``--out``.

    What is written before a crash or a full disk stays.

    Args:
        resumed: keeps the results that are there already; else they are replaced.

    Raises:
        UserError: the folder can't be made or written; from every method.
    """

    def __init__(self, folder: Path, resumed: bool = False) -> None:
        self.folder = folder
        earlier = read_results(folder) if resumed else []
        self._stems = {each["overlay"].removesuffix(OVERLAY) for each in earlier if "overlay" in each}
        with writing(folder):
            with replacing(folder / RESULTS) as temporary:
                temporary.write_bytes(b"".join(map(_json_line, earlier)))
            (folder / TABLE).write_bytes(codecs.BOM_UTF8)  # which Excel needs
            self._add_rows([dict(zip(COLUMNS, COLUMNS, strict=True)), *map(_row, earlier)])

    def add(self, result: Result) -> None:
        """Appends a result to the tables."""
        with writing(self.folder):
            with (self.folder / RESULTS).open("ab") as file:
                file.write(_json_line(result))
            self._add_rows([_row(result)])

    def _add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with (self.folder / TABLE).open("a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.DictWriter(file, COLUMNS, extrasaction="ignore").writerows(rows)

    def write_pictures(self, path: Path, photo: Image.Image, prediction: Prediction) -> dict[str, str]:
        """Writes a photo's overlay and float map, each atomically: "overlay" and "map" -> file name."""
        image, stem = prediction.image, output_stem(path, self._stems)
        pictures = {
            "overlay": (f"{stem}{OVERLAY}", overlay(photo, image.map, image.threshold, image.regions)),
            "map": (f"{stem}{MAP}", Image.fromarray(image.map)),
        }
        for name, picture in pictures.values():
            with writing(self.folder), replacing(self.folder / name) as temporary:
                picture.save(temporary)
        return {kind: name for kind, (name, _) in pictures.items()}

    def write_report(self, settings: Mapping[str, str], language: Language) -> None:
        """Writes the page about all results of the folder."""
        page = report_html(read_results(self.folder), self._overlay, settings, language)
        with writing(self.folder), replacing(self.folder / REPORT) as temporary:
            temporary.write_bytes(page.encode("utf-8", "backslashreplace"))

    def _overlay(self, result: Result) -> Image.Image | None:
        with suppress(OSError):
            return Image.open(self.folder / result["overlay"])
        return None


@contextmanager
def writing(path: Path, option: str = "--out") -> Iterator[None]:
    """Turns an OSError into a :class:`UserError` that names the option and its path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path}: can't be written ({error})") from error


def output_stem(path: Path, taken: set[str]) -> str:
    """The beginning of a photo's file names: its last folders and name, numbered where that is taken; then it is."""
    parts = [part for part in path.with_suffix("").parts if part not in (path.anchor, "..")]
    stem = "_".join(parts[-3:])  # test/crack/000.png and test/good/000.png stay apart
    free = next(name for name in chain([stem], (f"{stem}~{n}" for n in count(2))) if name not in taken)
    taken.add(free)
    return free


def _json_line(result: Result) -> bytes:
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _row(result: Result) -> dict[str, Any]:
    return {**result, "verdict": verdict(result), "places": "; ".join(result.get("places", ()))}
