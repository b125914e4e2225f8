"""What predict.py writes: results line by line, overlays and maps; at the end a table, a report, a COCO data set."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from anomalygpt.datasets.findings import Language
from anomalygpt.datasets.records import OVERLAY, RESULTS, read_results
from anomalygpt.errors import UserError
from anomalygpt.files import replacing
from anomalygpt.inference.coco import coco_annotations, coco_dataset
from anomalygpt.inference.report import Result, report_html, verdict
from anomalygpt.inference.results import Prediction
from anomalygpt.inference.visualize import save_pictures

NUMBERS = ("probability", "score", "threshold", "score_threshold", "number", "total_area")
COLUMNS = ("photo", "verdict", "reason", *NUMBERS, "places", "answer", "error", "overlay", "map")


class Outputs:
    """The folder of ``--out`` and the file of ``--coco``; what was written before a crash or a full disk stays.

    Args:
        folder: None: none of its files are written.
        coco: None: it is not written.
        resumed: keeps the results that the folder holds already, as ``earlier``.

    Raises:
        UserError: from every method: a file can't be written.
    """

    def __init__(self, folder: Path | None, coco: Path | None = None, resumed: bool = False) -> None:
        self.folder, self.coco, self._annotated = folder, coco, dict[Path, Any]()
        self.earlier = read_results(folder) if folder and resumed else []
        self._stems = Counter(each["overlay"].removesuffix(OVERLAY) for each in self.earlier if "overlay" in each)
        if folder:
            _write(folder / RESULTS, "".join(map(_line, self.earlier)))
        if coco:
            _write(coco, json.dumps(coco_dataset({})))

    def write_pictures(self, path: Path, photo: Image.Image, prediction: Prediction) -> dict[str, str]:
        """Writes a photo's overlay and float map, each atomically: "overlay" and "map" -> file name."""
        image = prediction.image
        if self.coco:
            self._annotated[path] = image.map.shape[::-1], coco_annotations(image)
        if not self.folder:
            return {}
        with _writing(self.folder):
            return save_pictures(self.folder, output_stem(path, self._stems), photo, image)

    def add(self, result: Result) -> None:
        """Appends a result to ``results.jsonl``."""
        if self.folder:
            with _writing(self.folder), (self.folder / RESULTS).open("ab") as file:
                file.write(_line(result).encode("utf-8", "backslashreplace"))

    def finish(self, settings: Mapping[str, str], language: Language) -> None:
        """Writes the table and the report about all results of the folder, and the COCO data set."""
        if self.coco:
            _write(self.coco, json.dumps(coco_dataset(self._annotated)))
        if (folder := self.folder) is None:
            return
        results = read_results(folder)
        table = csv.DictWriter(file := StringIO(), COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(map(table_row, results))
        _write(folder / "results.csv", "\ufeff" + file.getvalue())  # with the mark that Excel needs

        def picture(result: Result) -> Image.Image | None:
            path = folder / result["overlay"]
            return Image.open(path) if path.is_file() else None

        _write(folder / "report.html", report_html(results, picture, settings, language))


def table_row(result: Result) -> dict[str, Any]:
    """A result with what only tables have."""
    return {**result, "verdict": verdict(result), "places": "; ".join(result.get("places", ()))}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error})") from error


def _write(path: Path, text: str) -> None:
    with _writing(path), replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # file names may be no UTF-8


def _line(result: Result) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"


def output_stem(path: Path, taken: Counter[str]) -> str:
    """The beginning of a photo's file names: its last folders and name, numbered where that is taken; then it is.

    ``taken``: of each stem, how many photos had it so far: no number is tried twice.
    """
    parts = [part for part in path.with_suffix("").parts if part not in (path.anchor, "..")]
    stem = "_".join(parts[-3:])  # test/crack/000.png and test/good/000.png stay apart
    free = stem
    while free in taken:  # a photo's own name may end in ~2
        taken[stem] += 1
        free = f"{stem}~{taken[stem]}"
    taken[free] = 1
    return free
