"""What predict.py prints and writes: results in words, overlays, maps, tables, a page, a COCO data set."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from anomalygpt.datasets.findings import Language, percent, places_text, probability_text, without_odd_text
from anomalygpt.datasets.records import OVERLAY, RESULTS
from anomalygpt.datasets.regions import label_regions
from anomalygpt.files import claimed, read_lines, read_yaml, replacing, writing
from anomalygpt.inference.regions import PEAK_FRACTION
from anomalygpt.inference.results import ImageResult, Prediction
from anomalygpt.inference.visualize import jpeg_uri

Result = Mapping[str, Any]  # "photo", and what ``Prediction.to_dict`` holds, or an "error"

TEXTS: dict[str, dict[str, str]] = read_yaml(Path(__file__).with_name("report.yaml"))  # by language and name
PICTURES = 200  # in a report, of the worst photos; the others are lines of a table
SIDE = 320  # of a picture in pixels
BINS, WIDEST = 24, 8.0  # of the histogram; scores beyond this factor from the threshold are in its first and last bin
PACKAGES = ("torch", "transformers", "numpy", "pillow")  # results depend on them
MARKS = {"good": ("✓", 32), "defective": ("✗", 31), "can't tell": ("?", 33)}  # with their colours on a terminal
ORDER = ("defective", "can't tell", "good", "error")
NUMBERS = ("probability", "score", "threshold", "score_threshold", "number", "total_area")
COLUMNS = ("photo", "verdict", "reason", *NUMBERS, "places", "answer", "error", "overlay", "map")
TOLERANCE = 0.4  # pixels, by which a polygon may be off a region's edge
CATEGORY = {"id": 1, "name": "defect"}


class Outputs:
    """The folder of ``--out`` and the file of ``--coco``, if any; what was written before a crash or a full disk stays.

    ``resumed`` keeps the results that the folder holds already, as ``earlier``. All may raise :class:`UserError`.
    """

    def __init__(self, folder: Path | None, coco: Path | None = None, resumed: bool = False) -> None:
        self.folder, self.coco, self._annotated = folder, coco, dict[Path, Any]()
        self._held = ExitStack()  # until the end, against a second run
        self.earlier = read_lines(folder / RESULTS) if folder and resumed else []
        self._stems = Counter(each["overlay"].removesuffix(OVERLAY) for each in self.earlier if "overlay" in each)
        if folder:
            self._held.enter_context(claimed(folder, "--out"))
            _write(folder / RESULTS, "".join(map(_line, self.earlier)))
        if coco:
            _write(coco, json.dumps(coco_dataset({})))

    def write_pictures(self, path: Path, prediction: Prediction) -> dict[str, str]:
        """Writes a photo's overlay and float map, each atomically: "overlay" and "map" -> file name."""
        image = prediction.image
        if self.coco:
            self._annotated[path] = image.map.shape[::-1], coco_annotations(image)
        if not self.folder:
            return {}
        return image.save_pictures(self.folder, output_stem(path, self._stems))

    def add(self, result: Result) -> None:
        """Appends a result to ``results.jsonl``."""
        if self.folder:
            with writing(self.folder), (self.folder / RESULTS).open("ab") as file:
                file.write(_line(result).encode("utf-8", "backslashreplace"))

    def finish(self, settings: Mapping[str, str], language: Language) -> None:
        """Writes the table and the report about all results of the folder, and the COCO data set."""
        if self.coco:
            _write(self.coco, json.dumps(coco_dataset(self._annotated)))
        if (folder := self.folder) is None:
            return
        results = read_lines(folder / RESULTS)
        table = csv.DictWriter(file := StringIO(), COLUMNS, extrasaction="ignore")
        table.writeheader()
        for each in results:
            table.writerow({**each, "verdict": verdict(each), "places": "; ".join(each.get("places", ()))})
        _write(folder / "results.csv", "\ufeff" + file.getvalue())  # with the mark that Excel needs
        _write(folder / "report.html", report_html(results, folder, settings, language))
        self._held.close()


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # file names may be no UTF-8


def _line(result: Result) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"


def output_stem(path: Path, taken: Counter[str]) -> str:
    """The beginning of a photo's file names: its last folders and name, numbered by how many had it in ``taken``."""
    parts = [part for part in path.with_suffix("").parts if part not in (path.anchor, "..")]
    # test/crack/000.png and test/good/000.png stay apart; file systems allow names of 255 bytes.
    stem = free = os.fsencode("_".join(parts[-3:]))[-200:].decode("utf-8", "ignore")
    while free in taken:  # a photo's own name may end in ~2
        taken[stem] += 1
        free = f"{stem}~{taken[stem]}"
    taken[free] = 1
    return free


def coco_annotations(image: ImageResult) -> list[dict[str, Any]]:
    """A photo's regions with polygons in pixels; the photo's probability, if it has one, is their score."""
    from skimage.measure import approximate_polygon, find_contours  # here: imports scipy.signal, which takes its time

    probability, annotations = image.probability, []
    score = {} if probability is None else {"score": round(probability, 6)}
    for region in image.regions:
        left, top, right, bottom = region.box
        # A region that is nowhere above the threshold was found at a lower one.
        level = image.threshold if region.peak > image.threshold else PEAK_FRACTION * float(image.map.max())
        labels, _ = label_regions(image.map[top:bottom, left:right] > level)  # others may reach into its box
        sizes, area = np.bincount(labels.flat)[1:], round(region.area * image.map.size)
        inside = ndimage.binary_fill_holes(labels == 1 + np.abs(sizes - area).argmin())
        contour = max(find_contours(np.pad(inside, 1).astype(float), 0.5, fully_connected="high"), key=len)
        # The pixel (0, 0) is at (1, 1) of the padded flags, and reaches from 0 to 1. The last point is the first.
        points = approximate_polygon(contour, TOLERANCE)[:-1, ::-1] - 0.5 + (left, top)
        shape = {"bbox": [left, top, right - left, bottom - top], "segmentation": [points.round(2).ravel().tolist()]}
        annotations.append({"category_id": CATEGORY["id"], "iscrowd": 0, **shape, "area": area, **score})
    return annotations


def coco_dataset(photos: Mapping[Path, tuple[tuple[int, int], Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """A data set of photos, with (width, height) and annotations; names are relative to the folder that holds all."""
    root = os.path.commonpath([path.absolute().parent for path in photos]) if photos else ""
    images, annotations = [], list[dict[str, Any]]()
    for number, (path, ((width, height), found)) in enumerate(photos.items(), start=1):
        name = path.absolute().relative_to(root).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [{"id": len(annotations) + 1 + n, "image_id": number, **each} for n, each in enumerate(found)]
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def system_language() -> Language:
    """Chinese where the environment asks for it, else English."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").startswith("zh") else "en"


def verdict(result: Result) -> str:
    """``good``, ``defective``, ``can't tell``, or ``error`` of a photo that could not be read."""
    if "error" in result:
        return "error"
    return "can't tell" if result["reason"] else "defective" if result["is_anomalous"] else "good"


def severity(result: Result) -> tuple[int, float, float]:
    """A key that sorts results with the worst first, and those of photos that could not be read last."""
    return ORDER.index(verdict(result)), -(result.get("probability") or 0), -result.get("score", 0.0)


def details(result: Result, language: Language) -> str:
    """Where the defects are, or why there is no verdict, and what it would be without odd references; or nothing."""
    texts, other = TEXTS[language], without_odd_text(result.get("probability_without_odd"), language)
    found = texts[result["reason"]] if result["reason"] else ""
    if verdict(result) == "defective" and result["regions"]:
        places, area = places_text(result["places"], language), percent(result["total_area"], language)
        found = texts["place"].format(places=places, area=area)
    return texts["detail"].format(verdict=found, text=other) if found and other else found or other


def result_text(result: Result, language: Language = "en", colour: bool = False) -> str:
    """A result on a terminal: a line with mark, probability, photo, verdict and place, and the answer beneath."""
    texts, kind = TEXTS[language], verdict(result)
    mark, code = MARKS[kind]
    place, share = details(result, language), probability_text(result["probability"])
    text = texts["detail"].format(verdict=texts[kind], text=place) if place else texts[kind]
    mark = f"\033[{code}m{mark}\033[0m" if colour else mark
    lines = [texts["line"].format(mark=mark, probability=share, photo=result["photo"], text=text)]
    if result["answer"]:
        lines.append(f"  {result['answer']}{texts.get(result['answer_source'], '')}")
    if not result["answer_agrees"] and result["verdict_from"] == "answer":
        lines.append(f"  {texts['contradicts']}")
    return "\n".join(lines)


def data_uri(picture: Path, side: int = SIDE) -> str:
    """A small JPEG for an HTML page; empty where there is no file."""
    return jpeg_uri(Image.open(picture), side) if picture.is_file() else ""


def report_html(results: Sequence[Result], folder: Path, settings: Mapping[str, str], language: Language = "en") -> str:
    """The page: summary, histogram of the scores, photos with the worst first, settings and versions.

    ``folder`` has the overlays; ``settings`` are values by name in ``report.yaml``, such as ``model_name``.
    """
    from jinja2 import Environment, FileSystemLoader

    photos = sorted((each for each in results if "error" not in each), key=severity)
    bins, counts = histogram(photos), Counter(map(verdict, results))
    page: dict[str, Any] = {"language": language, "texts": TEXTS[language], "settings": settings, "bins": bins}
    page |= {"photos": photos, "pictures": folder, "shown": PICTURES, "counts": counts}
    page |= {"unread": [each for each in results if "error" in each]}
    page |= {"tallest": max(map(Counter.total, bins), default=0)}
    page |= {"folder": os.path.dirname(os.path.commonprefix([each["photo"] for each in results]))}
    page |= {"versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES)}
    page |= {"time": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")}
    page |= {"verdict": verdict, "details": details, "percent": probability_text, "data_uri": data_uri}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html").render(page)


def histogram(results: Iterable[Result]) -> list[Counter[str]]:
    """Verdicts by the logarithm of score / threshold, from 1 / ``WIDEST`` to ``WIDEST``; empty without any score."""
    bins: list[Counter[str]] = [Counter() for _ in range(BINS)]
    for result in results:
        if result.get("score_threshold"):
            position = math.log(max(result["score"], 1e-9) / result["score_threshold"], WIDEST)
            bins[max(0, min(BINS - 1, math.floor((1 + position) * BINS / 2)))][verdict(result)] += 1
    return bins if any(bins) else []
