"""The page's handlers on real photos: badge, sentence, table, map and answers agree in both languages."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, language_of
from anomalygpt.datasets.records import list_folders, list_images
from anomalygpt.inference.answer_check import check_answer
from anomalygpt.inference.answers import means_anomalous, parse_positions
from anomalygpt.inference.session import SharedModel
from anomalygpt.inference.visualize import FAINT
from anomalygpt.serving.page import TEXTS, Page
from tests.shared_data import shared

PARTS = (
    *("bottle", "carpet_tiles", "crackforest_pavement", "grid_tiles", "hazelnut", "kolektor_commutator"),
    *("leather_tiles", "screw", "toothbrush", "transistor", "CrackForest"),
)
REFERENCES = 2
BADGES = {"good": "good", "defective": "defective", "can't tell": "cant-tell"}


def photos_of(part: str) -> tuple[list[Path], list[Path]]:
    """References, and all other photos of a part."""
    if part == "CrackForest":
        return [], list_images(shared("data/CrackForest/image"))
    folder = shared(f"data/mvtec_layout/{part}")
    good = list_images(folder / "train" / "good")
    tested = [path for kind in list_folders(folder / "test") for path in list_images(kind)]
    return good[:REFERENCES], good[REFERENCES:] + tested


@pytest.fixture(scope="module")
def model(compact_overrides: list[str]) -> SharedModel:
    from anomalygpt.config.load import load_config
    from anomalygpt.inference.predictor import Predictor

    settings = [*compact_overrides, "llm.generation.temperature=0", "llm.generation.max_new_tokens=48"]
    return SharedModel(Predictor.from_config(load_config("compact", settings), "cpu").without_references)


def check_summary(language: Language, summary: str, findings: Findings) -> None:
    """Raises AssertionError where badge, sentence or table differ from the findings."""
    ((badge, label),) = re.findall(r'<b class="(.+?)">(.+?)</b>', summary)
    assert badge == BADGES[findings.status]
    assert label == TEXTS[language][findings.status]

    sentence = unescape(re.findall(r"<p>(.+?)</p>", summary)[0])
    assert check_answer(sentence, {"en": "What is it?", "zh": "怎么样？"}[language], findings) == (), sentence
    assert language_of(sentence) == language
    assert parse_positions(sentence)[:1] == findings.places[:1], sentence

    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.+?)</tr>", summary)]
    assert [int(re.sub("<.*?>", "", number)) for number, *_ in rows] == list(range(1, findings.number + 1))
    assert [parse_positions(place) for _, place, *_ in rows] == [(region.place,) for region in findings.regions]


def check_map(photo: Image.Image, picture: Image.Image, findings: Findings) -> None:
    """Raises AssertionError where a region is not painted red, or a photo without regions is painted strongly."""
    shown, plain = (np.asarray(image).astype(int) for image in (picture, photo))
    if not findings.regions:
        assert np.abs(shown - plain).max() <= FAINT * 255 + 1
    redder = (shown - plain) @ (1, 0, -1)
    scale = picture.width / findings.image_size[0]
    for region in findings.regions:
        left, top, right, bottom = (round(edge * scale) for edge in region.box)
        assert redder[top : bottom + 1, left : right + 1].max() > 40, region


def check_answer_of_page(model: SharedModel, language: Language, given: tuple[Any, ...], findings: Findings) -> None:
    """Raises AssertionError where the answer to the page's first suggestion differs from the findings."""
    *_, (chat, *_) = Page(model).ask(language, TEXTS[language]["ask_verdict"], *given)
    question, answer = (unescape(re.sub(r"<small.*|</?div[^>]*>", "", bubble["content"])) for bubble in chat[-2:])
    assert check_answer(answer, question, findings) == (), answer
    assert language_of(answer) == language, answer
    assert set(parse_positions(answer)) <= set(findings.places), answer
    if findings.status != "can't tell":
        assert means_anomalous(question, answer) in (None, findings.status == "defective"), answer
        assert bool(parse_positions(answer)) is (findings.status == "defective"), answer


def check_photo(model: SharedModel, path: Path, good: list[Path], asked: tuple[Language, ...]) -> None:
    """Raises AssertionError where the page contradicts itself; ``asked``: languages in which a question is asked."""
    for language in LANGUAGES:
        given = (str(path), [(str(each), None) for each in good], "", None, "")
        pictures, summary, conversation = Page(model).show(language, 1, 1, *given, None)
        result, _ = model.inspect(conversation)
        check_summary(language, summary, result.findings)
        check_map(*pictures, result.findings)
        if language in asked:
            check_answer_of_page(model, language, (*given, conversation), result.findings)


@pytest.mark.weights
@pytest.mark.parametrize("part", ["bottle", "screw", "CrackForest"])
def test_page_agrees_with_itself_on_a_photo(model: SharedModel, part: str) -> None:
    good, photos = photos_of(part)
    check_photo(model, photos[-1], good, LANGUAGES)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", PARTS)
def test_page_agrees_with_itself_on_every_photo(model: SharedModel, part: str) -> None:
    """A question is asked in one language about each photo, in turn."""
    good, photos = photos_of(part)
    failed = []
    for number, path in enumerate(photos):
        try:
            check_photo(model, path, good, LANGUAGES[number % 2 :][:1])
        except AssertionError as error:
            failed.append(f"{path}: {error}")
    assert failed == [], f"{len(failed)} of {len(photos)} photos"
