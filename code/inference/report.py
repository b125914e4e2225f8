"""A self-contained HTML page about the results of many photos, and the words for one result, in two languages."""

import math
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from anomalygpt.datasets.findings import Language, percent, places_text, probability_text

Result = Mapping[str, Any]  # "photo", and what ``Prediction.to_dict`` holds, or an "error"

PICTURES = 200  # in a report, of the worst photos; the others are lines of a table
SIDE = 320  # of a picture in pixels
BINS, WIDEST = 24, 8.0  # of the histogram; scores beyond this factor from the threshold are in its first and last bin
PACKAGES = ("torch", "transformers", "numpy", "pillow")  # results depend on them
MARKS = {"good": ("✓", 32), "defective": ("✗", 31), "can't tell": ("?", 33)}  # with their colours on a terminal
ORDER = ("defective", "can't tell", "good", "error")


@cache
def report_texts(language: Language) -> dict[str, str]:
    """The texts by name."""
    return yaml.safe_load(Path(__file__).with_name("report.yaml").read_text(encoding="utf-8"))[language]


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
    """Where the defects are, or why there is no verdict; empty for a good photo."""
    if result["reason"]:
        return report_texts(language)[result["reason"]]
    if verdict(result) == "good" or not result["regions"]:
        return ""
    places, area = places_text(result["places"], language), percent(result["total_area"], language)
    return report_texts(language)["place"].format(places=places, area=area)


def result_text(result: Result, language: Language = "en", colour: bool = False) -> str:
    """A result on a terminal: a line with mark, probability, photo, verdict and place, and the answer beneath."""
    texts, kind = report_texts(language), verdict(result)
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
    if not picture.is_file():
        return ""
    small = Image.open(picture).convert("RGB")
    small.thumbnail((side, side))
    small.save(file := BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def report_html(
    results: Sequence[Result], pictures: Path, settings: Mapping[str, str], language: Language = "en"
) -> str:
    """The page: summary, histogram of the scores, photos with the worst first, settings and versions.

    Args:
        pictures: the folder of the overlays.
        settings: a name in ``report.yaml`` -> its value, as in ``{"model_name": "compact"}``.
    """
    from jinja2 import Environment, FileSystemLoader

    photos = sorted((each for each in results if "error" not in each), key=severity)
    bins, counts = histogram(photos), Counter(map(verdict, results))
    page: dict[str, Any] = {"language": language, "texts": report_texts(language), "settings": settings, "bins": bins}
    page |= {"photos": photos, "pictures": pictures, "shown": PICTURES, "counts": counts}
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
