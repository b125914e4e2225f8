"""The page's handlers on real photos: badge, sentence, table, map and answers agree in both languages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from anomalygpt.datasets.findings import Findings, Language
from anomalygpt.datasets.records import list_folders, list_images
from anomalygpt.inference.answer_check import check_answer, language_of
from anomalygpt.inference.answers import means_anomalous, parse_positions
from anomalygpt.inference.regions import SMALLEST_REGION
from anomalygpt.inference.session import SharedModel
from anomalygpt.inference.visualize import FAINT
from anomalygpt.web_demo import ask, page_texts, show
from tests.shared_data import shared

PARTS = (
    *("bottle", "carpet_tiles", "crackforest_pavement", "grid_tiles", "hazelnut", "kolektor_commutator"),
    *("leather_tiles", "screw", "toothbrush", "transistor", "CrackForest"),
)
REFERENCES = 2


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


def answers(model: SharedModel, language: Language, given: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Question and answer as the chat has them, of the page's first suggestion."""
    *_, (chat, *_) = ask(model, language, page_texts()[language]["ask_verdict"], *given)
    texts = [re.sub(r"<small.*", "", bubble["content"]) for bubble in chat]
    texts = [re.sub(r"</?div[^>]*>", "", text) for text in texts]
    yield texts[-2], texts[-1]


def check_page(model: SharedModel, language: Language, given: tuple[Any, ...]) -> None:
    """Raises AssertionError where the page contradicts itself."""
    picture, summary, conversation = show(model, language, 1, *given)
    result, preview = model.inspect(conversation)
    findings = result.findings
    regions = findings.regions

    assert findings.status in get_args(Findings.__annotations__["status"])
    badge, label = re.findall(r'<b class="(.+?)">(.+?)</b>', summary)[0]
    assert badge == re.sub(r"\W", "", findings.status.replace(" ", "-"), flags=0) or badge == "cant-tell"
    assert label == page_texts()[language][findings.status]

    sentence = re.findall(r"<p>(.+?)</p>", summary)[0]
    assert check_answer(sentence, {"en": "What is it?", "zh": "怎么样？"}[language], findings) == ()
    assert language_of(sentence) == language
    assert set(parse_positions(sentence)) <= set(findings.places)

    rows = re.findall(r"<tr>(<td>.+?)</tr>", summary)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert [int(number) for number, *_ in cells] == list(range(1, len(regions) + 1))
    assert [parse_positions(place) for _, place, *_ in cells] == [(region.place,) for region in regions]
    if regions and language == "en":
        assert parse_positions(sentence)[0] == regions[0].place

    check_map(picture, preview, result.map, result.threshold, findings)
    for question, answer in answers(model, language, (*given[:-1], conversation)):
        assert check_answer(answer, question, findings) == (), answer
        if findings.status != "can't tell":
            assert means_anomalous(question, answer) in (None, findings.status == "defective"), answer
            assert bool(parse_positions(answer)) is (findings.status == "defective"), answer
        assert set(parse_positions(answer)) <= set(findings.places), answer


def check_map(
    picture: Image.Image, preview: Image.Image, values: np.ndarray, threshold: float, findings: Findings
) -> None:
    """Each region is a painted component of the map above its threshold; a good photo has no strong colour."""
    redness = [np.asarray(image).astype(int) @ (1, 0, -1) for image in (picture, preview)]
    if not findings.regions:
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(preview)).max() <= FAINT * 255 + 1
        return
    scale = preview.width / values.shape[1]
    for region in findings.regions:
        left, top, right, bottom = region.box
        box = np.s_[int(top * scale) : int(bottom * scale) + 1, int(left * scale) : int(right * scale) + 1]
        assert (redness[0] - redness[1])[box].max() > 40, region
    labels, count = ndimage.label(values > threshold, structure=np.ones((3, 3)))
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1)) if count else np.zeros(0)
    shown = int((sizes >= SMALLEST_REGION * values.size).sum())
    if findings.status == "defective":
        assert len(findings.regions) == max(1, shown)


def check_photos(model: SharedModel, part: str, photos: list[Path], good: list[Path]) -> None:
    references = [(str(path), None) for path in good]
    for path in photos:
        for language in ("en", "zh"):
            try:
                check_page(model, language, (str(path), references, "", None, None))
            except AssertionError as error:
                raise AssertionError(f"{part}: {path}, {language}: {error}") from error


@pytest.mark.weights
@pytest.mark.parametrize("part", PARTS)
def test_page_agrees_with_itself_on_a_photo_of_each_part(model: SharedModel, part: str) -> None:
    good, photos = photos_of(part)
    number = PARTS.index(part)
    check_photos(model, part, photos[-1 - number : len(photos) - number], good)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", PARTS)
def test_page_agrees_with_itself_on_every_photo(model: SharedModel, part: str) -> None:
    good, photos = photos_of(part)
    assert photos
    check_photos(model, part, photos, good)
