"""The demo: its handlers, and once all of it in a browser."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
import requests
from PIL import Image

from anomalygpt import web_demo
from anomalygpt.datasets.findings import Language
from anomalygpt.inference.results import ImageResult
from anomalygpt.inference.session import Conversation, SharedModel
from anomalygpt.serving.page import (
    PENDING,
    TEXTS,
    Page,
    Part,
    build_page,
    clear,
    find_examples,
    part_html,
    start_over,
    stop,
)
from tests import browser
from tests.fake_predictor import FakePredictor, write_photos
from tests.processes import started
from tests.shared_data import ROOT

EXAMPLES = ROOT / web_demo.EXAMPLES


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path, 3)


def texts(chat: list[dict[str, str]]) -> list[str]:
    """The chat's messages without the page's own markup."""
    return [re.sub(r'<div dir="auto">|</div>|<small class="note">|</small>', "", each["content"]) for each in chat]


def given(photo: str | None, references: Any = (), class_name: str = "", part: Part | None = None) -> tuple[Any, ...]:
    return photo, references, class_name, part, "", None


def asked(
    question: str, inputs: tuple[Any, ...], predictor: Any = None, language: Language = "en"
) -> tuple[list[Any], Conversation]:
    """Chat and question box in each step of an answer, and the conversation after it."""
    steps = list(Page(SharedModel(lambda: predictor or FakePredictor())).ask(language, question, *inputs))
    return [(chat, box.get("value")) for chat, box, _ in steps], steps[-1][2]


def test_verdict_and_map_are_there_without_a_question(photos: list[str]) -> None:
    picture, summary, conversation = Page(SharedModel(FakePredictor)).show("en", 1, 1, *given(photos[0]))  # type: ignore[arg-type]
    assert [each.size for each in picture] == [(640, 480)] * 2
    assert '<b class="defective">Defect</b><span>sure</span>' in summary
    assert "There is a defect at the top left: a compact region" in summary
    assert ">1</button></td><td>top left</td><td>1.0%</td><td>medium-sized</td><td>compact</td>" in summary
    assert (conversation.photo, conversation.exchanges) == (Path(photos[0]), [])


def test_page_speaks_the_language_that_it_is_given(photos: list[str]) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]
    _, summary, _ = Page(model).show("zh", 1, 1, *given(photos[0]))
    assert '<b class="defective">有缺陷</b><span>确定</span>' in summary
    assert "<td>左上角</td>" in summary
    steps, _ = asked("", given(photos[0]), language="zh")
    assert texts(steps[0][0])[0] == "图中有没有异常？"
    assert TEXTS["en"].keys() == TEXTS["zh"].keys()


@pytest.mark.parametrize(
    ("language", "badge", "sentence", "row"),
    [
        ("en", "Can't tell", "without reference photos", "<td>top left</td>"),
        ("zh", "无法判断", "无法判断", "<td>左上角</td>"),
    ],
)
def test_photo_without_a_verdict(photos: list[str], language: Language, badge: str, sentence: str, row: str) -> None:
    class Undecided(FakePredictor):
        def inspect(self, photo: Image.Image, class_name: str) -> ImageResult:
            return replace(super().inspect(photo, class_name), reason="unknown_part")

    model = SharedModel(Undecided)  # type: ignore[arg-type]
    _, summary, conversation = Page(model).show(language, 1, 1, *given(photos[0]))
    assert f'<b class="cant-tell">{badge}</b><span></span>' in summary
    assert sentence in summary and row in summary
    ((line, table, _),) = Page(model).inspect_many(language, photos[:1], None)
    assert table["value"]["data"][0][2] == TEXTS[language]["can't tell"]
    assert re.findall("[0-9]", line) == ["0", "0", "1", "0"]


def test_other_threshold_redraws_without_the_model(photos: list[str]) -> None:
    predictor = FakePredictor()
    model = SharedModel(lambda: predictor)
    *_, conversation = Page(model).show("en", 1, 1, *given(photos[0]))
    inputs = *given(photos[0])[:-1], conversation
    picture, summary, _ = Page(model).show("en", 1.5, 1, *inputs)
    assert "at 1.50 times the threshold" in summary and "<td>top left</td>" in summary
    _, without, _ = Page(model).show("en", 2.5, 1, *inputs)
    assert Page(model).show("en", None, 1, *inputs)[1] == Page(model).show("en", 1, 1, *inputs)[1]  # an emptied box
    assert "<table" not in without and "Defect" in without
    (photo, faint), *_ = Page(model).show("en", 1.5, 0.1, *inputs)
    assert (
        np.abs(np.subtract(faint, photo, dtype=int)).mean() < np.abs(np.subtract(picture[1], photo, dtype=int)).mean()
    )
    assert predictor.inspected == ["object"]


def test_answer_grows(photos: list[str]) -> None:
    steps, _ = asked("What is it?", given(photos[0]))
    shown = [texts(chat)[-1] for chat, _ in steps]
    assert shown == [
        PENDING,
        "Yes,",
        "Yes, object number 1.",
        "Yes, object number 1.",
        "Yes, object number 1.",
    ]
    assert steps[0][1] == ""


@pytest.mark.parametrize(
    ("predictor", "note"),
    [
        (FakePredictor(), ""),
        (FakePredictor(source="corrected"), "corrected to agree with the map"),
        (FakePredictor(source="findings"), "written from the map's findings"),
        (FakePredictor(word="No"), "the model's own words, which contradict the map"),
    ],
)
def test_answer_that_is_not_the_models_own_is_marked(photos: list[str], predictor: FakePredictor, note: str) -> None:
    steps, _ = asked("Is there any defect?", given(photos[0]), predictor)
    assert texts(steps[-1][0])[-1] == f"{predictor.word}, object number 1.{note}"


@pytest.mark.parametrize("text", ["<script>x()</script>", "###Human: <|im_start|>", "مرحبا 😀", "<b>&amp; " * 1250])
def test_markup_is_shown_as_text(photos: list[str], text: str) -> None:
    predictor = FakePredictor(word=text)
    steps, conversation = asked(text, given(photos[0]), predictor)
    question, answer = texts(steps[-1][0])
    assert unescape(question) == text.strip() and unescape(answer).startswith(text)
    assert "<" not in question.replace("<small", "") and "<script" not in answer
    assert conversation.history[0][0] == predictor.asked[0][0] == text.strip()


def test_stop_keeps_what_was_shown_and_asks_again_on_retry(photos: list[str]) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]
    steps = Page(model).ask("en", "Is it bent?", *given(photos[0]))
    conversation = [next(steps), next(steps)][-1][2]
    assert stop(conversation)["stop_btn"] is False
    *_, last = steps
    assert texts(last[0]) == ["Is it bent?", "Yes,stopped"]
    assert conversation.history == [("Is it bent?", "Yes,")]
    *_, last = Page(model).ask_again("en", *given(photos[0])[:-1], conversation)
    assert texts(last[0]) == ["Is it bent?", "Yes, object number 2."]


def test_question_that_was_stopped_before_its_answer_goes_back_to_its_box(photos: list[str]) -> None:
    steps = Page(SharedModel(FakePredictor)).ask("en", "Is it fine?", *given(photos[0]))  # type: ignore[arg-type]
    stop(next(steps)[2])
    *_, last = steps
    assert (last[0], last[1]["value"]) == ([], "Is it fine?")


def test_clear_begins_another_conversation_about_the_photo(photos: list[str]) -> None:
    _, conversation = asked("Is it fine?", given(photos[0]))
    *_, new = clear(conversation)
    assert conversation.is_over
    assert (new.photo, new.exchanges) == (conversation.photo, [])


def test_new_photo_clears_the_chat(photos: list[str]) -> None:
    inputs = given(photos[0], [(photos[1], None)])
    _, conversation = asked("", inputs)
    assert all("value" not in update for update in start_over(*inputs[:-1], conversation))
    chat, _, new, factor, files = start_over(photos[2], *inputs[1:-1], conversation)
    assert (chat, new.photo, factor, files["value"]) == ([], Path(photos[2]), 1, None)
    assert conversation.is_over


def test_answer_about_a_photo_that_was_replaced_is_dropped(photos: list[str]) -> None:
    steps = Page(SharedModel(FakePredictor)).ask("en", "Is it fine?", *given(photos[0]))  # type: ignore[arg-type]
    start_over(photos[1], [], "", None, "", next(steps)[2])
    [(chat, box, _)] = list(steps)  # at a generator's end, Gradio shows what it gave last: here an empty chat
    assert chat == [] and (box["submit_btn"], box["stop_btn"]) == (True, False)


def test_question_about_a_photo_that_was_replaced_while_it_waited_is_dropped(photos: list[str]) -> None:
    _, _, shown = Page(SharedModel(FakePredictor)).show("en", 1, 1, *given(photos[0]))  # type: ignore[arg-type]
    start_over(photos[1], [], "", None, "", shown)
    assert list(Page(SharedModel(FakePredictor)).ask("en", "Is it fine?", *given(photos[0])[:-1], shown)) == []  # type: ignore[arg-type]


def test_no_photo_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="no photo yet"):
        steps, _ = asked("Is it fine?", given(None))
    assert steps[-1] == ([], "Is it fine?")


def test_unreadable_photo_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "<b>.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"^&lt;b&gt;\.png: cannot be read"):
        model = SharedModel(FakePredictor)  # type: ignore[arg-type]
        picture, summary, conversation = Page(model).show("en", 1, 1, *given(str(tmp_path / "<b>.png")))
    assert (picture, conversation) == (None, None)
    assert "as soon as there is a photo" in summary


def test_empty_question_is_the_one_that_its_box_shows(photos: list[str]) -> None:
    asked("  ", given(photos[0], class_name="nut"), predictor := FakePredictor())
    assert predictor.asked[0][0] == "Is there any anomaly in the image?"


def test_files_of_a_photo_hold_its_map_and_findings(photos: list[str]) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]
    _, conversation = asked("Is it fine?", given(photos[0]))
    result, _ = model.inspect(conversation)
    for shown in Page(model).write_files("en", conversation):
        overlay, tiff, array, record, report = shown["value"]
        assert Image.open(overlay).size == (40, 30)
        assert np.array_equal(np.asarray(Image.open(tiff)), result.map)
        assert np.array_equal(np.load(array), result.map)
        assert "data:image/jpeg" in Path(report).read_text(encoding="utf-8")
        written = json.loads(Path(record).read_text(encoding="utf-8"))
    assert written["status"] == "defective" and written["regions"][0]["position"] == "top left"
    assert written["conversation"][0]["answer"] == "Yes, object number 1."


def test_part_is_taught_saved_loaded_and_compared_with(photos: list[str], tmp_path: Path) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]
    (tmp_path / "text.png").write_text("no photo")
    with pytest.warns(UserWarning, match="text.png: cannot be read"):
        for taught, file in Page(model).teach("en", "a/nut", [*photos[1:], str(tmp_path / "text.png")], ""):
            assert (taught.name, len(taught.report.names)) == ("a/nut", 2)
            saved = Path(shutil.copy(file["value"], tmp_path))
    assert part_html("en", taught) == "<p>Learned part: a/nut, 2 reference photos.</p>"
    assert "2 references, at a mean distance of 0.100" in part_html("en", taught, with_report=True)
    assert "2张良品照片，平均距离0.100" in part_html("zh", taught, with_report=True)
    assert saved.name == "a_nut.safetensors"
    for loaded, _ in Page(model).teach("en", "", [str(saved)], ""):
        assert (loaded.name, len(loaded.report.names)) == ("a_nut", 2)
    *_, conversation = Page(model).show("en", 1, 1, *given(photos[0], part=loaded))
    assert conversation.references == (saved,)
    with pytest.warns(UserWarning, match="0 photos can be read"):
        assert list(Page(model).teach("en", "", [], "")) == []


def test_photo_is_marked_in_the_part_and_its_file_and_undone(photos: list[str], tmp_path: Path) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]

    def saved(steps: Any) -> tuple[Part, str]:
        ((part, file),) = [(part, Path(file["value"]).read_text()) for part, file in steps]
        return part, file

    part, _ = saved(Page(model).teach("en", "nut", photos[1:], ""))
    part, file = saved(Page(model).mark("en", *given(photos[0], part=part), is_good=False))
    assert file == "2 [False]"
    assert "good since: 0; called bad: 1" in part_html("en", part) and "有缺陷1张" in part_html("zh", part)
    *_, conversation = Page(model).show("en", 1, 1, *given(photos[0], part=part))
    assert conversation.marks == part.marks
    part, file = saved(Page(model).mark("en", *given(photos[0], part=part), is_good=None))
    assert (part.marks, file) == ((), "2 []")

    with pytest.warns(UserWarning, match="beside it, not with the learned part"):
        assert list(Page(model).mark("en", *given(photos[0], [(photos[1], None)], part=part), is_good=True)) == []


def test_chosen_region_stands_out_in_picture_and_table(photos: list[str]) -> None:
    model = SharedModel(FakePredictor)  # type: ignore[arg-type]
    *_, conversation = Page(model).show("en", 1, 1, *given(photos[0]))
    (_, plain), table, _ = Page(model).show("en", 1, 1, *given(photos[0])[:-1], conversation)
    (_, marked), chosen, _ = Page(model).show("en", 1, 1, *given(photos[0])[:-1], conversation, chosen=1)
    assert 'aria-pressed="false"' in table and 'aria-pressed="true"' in chosen
    changed = np.argwhere(np.any(np.asarray(plain) != np.asarray(marked), axis=-1))
    assert len(changed) and changed.max() < 200  # around the region, of 64 x 64 pixels at the top left, and its number


@pytest.mark.parametrize(
    ("name", "content", "words", "chinese"),
    [
        ("text.png", b"no picture", "text.png: cannot be read as an image", "text.png：无法作为图片读取"),
        ("empty.png", b"", "empty.png: cannot be read as an image", "empty.png：无法作为图片读取"),
        ("phone.heic", b"....ftypheic" + bytes(40), "phone.heic: ", "phone.heic："),
        ("large.png", None, "large.png: 20000 x 15000 pixels", "large.png：20000 x 15000像素，图片太大"),
        ("gone.png", ..., "gone.png: no such file", "gone.png：文件已不存在"),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_photo_that_can_not_be_read_is_one_line_in_the_pages_language(
    tmp_path: Path, language: Language, name: str, content: Any, words: str, chinese: str
) -> None:
    if content is None:
        Image.new("1", (20000, 15000)).save(tmp_path / name)
    elif content is not ...:
        (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning) as shown:
        Page(SharedModel(FakePredictor)).show(language, 1, 1, *given(str(tmp_path / name)))  # type: ignore[arg-type]
    (line,) = [str(each.message) for each in shown if each.category is UserWarning]
    assert line.startswith(words if language == "en" else chinese)
    assert "\n" not in line and str(tmp_path) not in line


@pytest.mark.parametrize(
    ("language", "words"),
    [("en", "dark.png: values from 0 to 4000 use 12 of 16 bits"), ("zh", "dark.png：像素值为0到4000")],
)
def test_doubts_about_how_a_photo_was_read_are_shown(
    photos: list[str], tmp_path: Path, language: Language, words: str
) -> None:
    dark = str(tmp_path / "dark.png")
    Image.fromarray(np.linspace(0, 4000, 4096, dtype=np.uint16).reshape(64, 64)).save(dark)
    page = Page(SharedModel(FakePredictor))  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=f"^{words}"):
        page.show(language, 1, 1, *given(dark))
    for _, table, files in Page(SharedModel(FakePredictor)).inspect_many(language, [dark], None):  # type: ignore[arg-type]
        assert words in table["value"]["data"][0][-1]
        assert str(tmp_path) not in Path(files["value"][1]).read_text(encoding="utf-8")
    steps = page.teach(language, "nut", [dark, photos[0]], "")
    with pytest.warns(UserWarning, match=f"^{words}") as shown:  # Gradio runs each step in a context of its own
        assert copy_context().run(next, steps)[0].name == "nut"
        assert copy_context().run(next, steps, None) is None
    assert len([each for each in shown if each.category is UserWarning]) == 1


def test_many_photos_make_a_table_with_the_worst_first(photos: list[str], tmp_path: Path) -> None:
    class Graded(FakePredictor):
        def inspect(self, photo: Image.Image, class_name: str) -> ImageResult:
            probability = photo.getpixel((0, 0))[0] / 100  # type: ignore[index]
            regions = super().inspect(photo, class_name).regions if probability > 0.5 else ()
            return replace(super().inspect(photo, class_name), score_probability=probability, regions=regions)

    (tmp_path / "text.png").write_text("no photo")
    paths = [str(tmp_path / "text.png"), *photos]
    for line, table, files in Page(SharedModel(Graded)).inspect_many("en", paths, None):  # type: ignore[arg-type]
        shown, (rows, records, report) = table["value"]["data"], files["value"]
        assert [row[1:5] for row in shown] == [
            ["2.png", "Defect", 80, 1],
            ["1.png", "Good", 40, 0],
            ["0.png", "Good", 0, 0],
            ["text.png", "can't be read", None, None],
        ]
        assert [row[0][:10] for row in shown] == ['<img alt=""'[:10]] * 3 + [""]
        page = Path(report).read_text(encoding="utf-8")
        assert page.count("<img") == 3 and page.index("2.png") < page.index("1.png")
        assert line == "<p>2 good, 1 defective, 0 undecided, 1 unreadable</p>"
        assert shown[0][5] == "at the top left (1.0%)"
        assert Path(rows).read_text(encoding="utf-8-sig").splitlines()[4].startswith("2.png,defective,")
        written = [json.loads(line)["photo"] for line in Path(records).read_text().splitlines()]
        assert written == [Path(path).name for path in paths]


def test_photos_of_one_name_have_their_own_pictures_in_the_report(tmp_path: Path) -> None:
    paths = []
    for name, grey in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / "0.png"))
        Image.new("RGB", (40, 30), (grey, grey, grey)).save(paths[-1])
    for _, _, files in Page(SharedModel(FakePredictor)).inspect_many("en", paths, None):  # type: ignore[arg-type]
        page = Path(files["value"][2]).read_text(encoding="utf-8")
        assert len(set(re.findall(r'src="(data:[^"]+)"', page))) == 2


def test_markup_in_a_name_stays_text(photos: list[str]) -> None:
    assert "<script>" not in part_html("en", Part("<script>", (), FakePredictor().report()))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--port", "{taken}", "in use"), ("--port", "70000", "0-65535"), ("--host", "nowhere.invalid", "")],
)
def test_address_that_can_not_be_served_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], option: str, value: str, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        value = value.format(taken=taken.getsockname()[1])
        with pytest.raises(SystemExit) as leave:
            web_demo.main(["--config", "compact", option, value])
    printed = capsys.readouterr()
    assert leave.value.code == 2
    assert printed.out == ""  # before the model is loaded
    assert printed.err.count("\n") == 1
    assert f"{option} {value}: can't serve there" in printed.err
    assert words in printed.err


# A page with a public link, or what Gradio takes for one.
SHARED = """
import subprocess
from gradio.tunneling import CURRENT_TUNNELS, Tunnel
from anomalygpt import web_demo
from anomalygpt.inference.predictor import Predictor
from tests.fake_predictor import FakePredictor

tunnel = Tunnel("", 0, "", 0, "", None)
tunnel.proc = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
CURRENT_TUNNELS.append(tunnel)
FakePredictor.without_references = FakePredictor
Predictor.from_config = lambda *_, **__: FakePredictor()
web_demo.main(["--config", "compact"])
print("tunnel", tunnel.proc)
"""


def test_a_demo_takes_the_next_free_port_and_when_stopped_ends_its_link_and_removes_uploads(tmp_path: Path) -> None:
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        environment["GRADIO_SERVER_PORT"] = str(busy)  # where Gradio begins, instead of 7860
        with started([sys.executable, "-c", SHARED], env=environment, stdout=subprocess.PIPE, text=True) as demo:
            assert demo.stdout is not None
            assert demo.stdout.readline() == "Loading compact …\n"
            url = demo.stdout.readline().split()[1]
            assert busy < int(url.rpartition(":")[2]) < busy + 100
            address = url + "/gradio_api"
            page = requests.Session()
            page.trust_env = False  # no proxy
            page.post(f"{address}/upload", files={"files": ("photo.png", b"photo")}).raise_for_status()
            assert [path.read_bytes() for path in tmp_path.rglob("*.png")] == [b"photo"]
            with page.get(f"{address}/heartbeat/me", stream=True):  # as an open page does
                demo.send_signal(signal.SIGTERM)
                output = demo.communicate(timeout=60)[0]
    assert demo.returncode == 0
    assert output.endswith("tunnel None\n")
    assert list(tmp_path.rglob("*.png")) == []


def test_shipped_examples_are_small_have_references_and_a_row_on_the_page() -> None:
    examples = find_examples(EXAMPLES)
    named = [(Path(photo).stem, class_name) for photo, _, class_name in examples]
    in_the_evening = [name for name in EXAMPLE_NAMES if name != "gear"]
    pages = {"defect": EXAMPLE_NAMES, "defect_evening": in_the_evening, "whole_evening": in_the_evening}
    assert named == [(stem, name) for stem, names in pages.items() for name in names]
    for photo, references, class_name in examples:
        assert len(references) == (0 if class_name == "gear" else 2)
        assert all(Path(path).stat().st_size <= 80_000 for path in (photo, *references))
    for folder in (Path("nowhere"), EXAMPLES):
        demo = build_page(SharedModel(FakePredictor), folder)  # type: ignore[arg-type]
        assert ("Dataset" in {type(block).__name__ for block in demo.blocks.values()}) == (folder == EXAMPLES)


EXAMPLE_NAMES = ["bottle", "capsule", "concrete", "fabric", "gear", "hazelnut", "pcb", "washer"]
FABRIC, GEAR, PCB, WASHER = (EXAMPLE_NAMES.index(name) for name in ("fabric", "gear", "pcb", "washer"))
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page_address(compact_overrides: list[str]) -> Iterator[str]:
    pytest.importorskip("playwright", reason="needs playwright")
    if browser.installed_browser() is None:
        pytest.skip(f"needs a browser: none of {', '.join(browser.BROWSERS)} is installed")
    with browser.running_demo(["--config", "compact", *compact_overrides]) as address:
        yield address


def is_in_reach(page: Any, name: str) -> bool:
    """Whether an element is on the screen without scrolling further down than its photo asks for."""
    box = page.locator(name).bounding_box()
    return box is not None and box["y"] >= 0 and box["y"] + box["height"] <= page.viewport_size["height"]


@pytest.mark.weights
@pytest.mark.timeout(900)  # a quiet machine needs half a minute
@pytest.mark.parametrize(("size", "locale"), [(DESKTOP, "en-US"), (PHONE, "zh-CN")], ids=["desktop", "phone"])
def test_demo_in_a_browser(page_address: str, tmp_path: Path, size: dict[str, int], locale: str) -> None:
    photo, _, _ = find_examples(EXAMPLES)[FABRIC]
    own = TEXTS[locale[:2]]
    with browser.window(page_address, size, locale) as window:
        page = window.page
        page.wait_for_timeout(2000)  # the page learns the browser's language sooner than a person clicks
        page.locator(browser.SEND).click()
        page.get_by_text({"en": "There is no photo yet", "zh": "还没有照片"}[locale[:2]]).wait_for()

        page.locator("#photo input[type=file]").set_input_files(photo)
        page.locator("#summary .verdict b").wait_for()  # without a question
        page.locator("#map img").first.wait_for()
        assert is_in_reach(page, "#summary .verdict") and is_in_reach(page, "#question")
        badge = page.locator("#summary .verdict b").inner_text()
        assert badge in (own["good"], own["defective"], own["can't tell"])
        assert window.ask()
        assert page.locator("#chat .message.user").inner_text().strip() == own["ask_verdict"]
        markup = "Where is it? <script>alert(1)</script> <b>x</b>"
        assert window.ask(markup)
        assert page.locator("#chat .message.user").last.inner_text().strip() == markup

        window.click_example(PCB)
        page.locator("#good img").first.wait_for()
        page.get_by_text(own["chat_hint"]).wait_for()  # the chat is empty again
        page.locator("#map img").first.wait_for()
        assert window.ask()
        page.screenshot(path=tmp_path / "demo.png")
        assert window.errors == []
        assert window.foreign == []
    assert Image.open(tmp_path / "demo.png").size == tuple(size.values())


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_language_can_be_chosen_in_a_browser(page_address: str) -> None:
    with browser.window(page_address, DESKTOP, "en-US") as window:
        for tag in ("zh", "en"):
            window.page.locator(f"#languages a[lang|={tag}]").click()
            window.page.get_by_text(TEXTS[tag]["no_verdict"]).wait_for()
            window.page.locator("#examples button").first.click()
            window.page.locator("#summary .verdict b").get_by_text(TEXTS[tag]["defective"]).wait_for()
        assert "<" not in window.page.locator("body").inner_text()  # no markup is shown as text


@pytest.mark.weights
@pytest.mark.timeout(900)
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_stop_and_clear_in_a_browser(page_address: str, size: dict[str, int]) -> None:
    with browser.window(page_address, size) as window:
        page = window.page
        window.click_example(FABRIC)
        page.locator("#map img").first.wait_for()
        window.begin("Is there any anomaly, where is it, how large is it, and what does it look like?")
        page.locator(browser.STOP).click()
        page.locator(browser.SEND).wait_for()
        bots = page.locator("#chat .message.bot")
        shown = bots.last.inner_text() if bots.count() else ""
        page.wait_for_timeout(2000)
        assert (bots.last.inner_text() if bots.count() else "") == shown  # nothing more comes
        assert "…" not in shown
        earlier = bots.count()
        assert window.ask("Where is it?")
        assert bots.count() == earlier + 1
        page.locator("#chat button[aria-label=Clear]").click()
        bots.first.wait_for(state="detached")
        assert window.ask("Where is it?")
        assert bots.count() == 1
        assert window.errors == []


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_part_many_photos_and_downloads_in_a_browser(page_address: str, tmp_path: Path) -> None:
    part = EXAMPLES / "washer"
    good, bad = [str(path) for path in sorted(part.glob("good*"))], str(part / "defect.jpg")

    def download(page: Any, files: str, number: int = 0) -> Path:
        with page.expect_download() as started_download:
            page.locator(f"{files} a").nth(number).click()
        started_download.value.save_as(target := tmp_path / started_download.value.suggested_filename)
        return target

    with browser.window(page_address, DESKTOP) as window:
        page = window.page
        page.locator("#photo input[type=file]").set_input_files(bad)
        page.locator("#map img").first.wait_for()
        page.locator("#adjust button").first.click()
        page.locator("#threshold input[type=number]").fill("0.5")
        page.locator("#threshold input[type=number]").press("Enter")
        page.get_by_text("0.50 times the threshold").wait_for()
        page.locator("#prepare").click()
        assert Image.open(download(page, "#files")).size == Image.open(bad).size

        page.get_by_role("tab").nth(1).click()
        page.locator("#part input[type=file]").set_input_files(good)
        page.get_by_text("good_2").wait_for()
        page.locator("#name input, #name textarea").fill("steel washer")
        page.locator("#learn").click()
        saved = download(page, "#part_file")
        assert saved.name == "steel washer.safetensors"

    with browser.window(page_address, DESKTOP) as window:  # another user, or the same one later
        page = window.page
        page.get_by_role("tab").nth(1).click()
        page.locator("#part input[type=file]").set_input_files(saved)
        page.locator("#part").get_by_text(saved.stem).wait_for()
        page.locator("#learn").click()
        page.locator("#learned").get_by_text("steel washer, 2 reference photos").wait_for()
        page.get_by_role("tab").nth(2).click()
        page.locator("#photos input[type=file]").set_input_files([*good, bad])
        page.locator("#photos").get_by_text("good_2").wait_for()
        page.locator("#run").click()
        rows = download(page, "#result_files").read_text(encoding="utf-8-sig").splitlines()
        assert [row.split(",")[:2] for row in rows[1:]] == [
            ["good_1.jpg", "good"],
            ["good_2.jpg", "good"],
            ["defect.jpg", "defective"],
        ]
        assert page.locator("#results img").count() >= 3  # Gradio has a hidden row of its own
        assert window.errors == []


@pytest.mark.weights
@pytest.mark.timeout(900)
def test_two_users_at_once_keep_their_own_photos(page_address: str) -> None:
    with browser.window(page_address, DESKTOP) as window:
        pages = [window.page, window.page.context.browser.new_page(viewport=DESKTOP, locale="zh-CN")]
        for page in pages[1:]:
            page.goto(page_address)
            page.set_default_timeout(1000 * browser.ANSWER_SECONDS)
        both = [browser.Window(page) for page in pages]
        names = ["washer", "pcb"]
        for page, name in zip(pages, names, strict=True):
            page.locator("#photo input[type=file]").set_input_files(EXAMPLES / name / "defect.jpg")
        for page in pages:
            page.locator("#summary .verdict b").wait_for()
            page.locator("#question textarea").fill("Where is it, and how large?")
        for page in pages:
            page.locator(browser.SEND).click()
        pages[1].get_by_text("queue: 1/1").wait_for()
        for page, name, user in zip(pages, names, both, strict=True):
            page.locator("#chat .message.bot").first.wait_for()
            assert user.answer()
            assert page.locator("#chat .message.user").count() == 1
            size = "image => fetch(image.src).then(answer => answer.blob()).then(blob => blob.size)"
            assert page.locator("#photo img").evaluate(size) == (EXAMPLES / name / "defect.jpg").stat().st_size
        first, second = (page.locator("#map img").last.get_attribute("src") for page in pages)
        assert first != second
        assert window.errors == []


@pytest.mark.parametrize(
    "proxy", ["python", pytest.param("nginx", marks=pytest.mark.skipif(not shutil.which("nginx"), reason="no nginx"))]
)
@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_page_behind_a_proxy_at_a_sub_path(compact_overrides: list[str], tmp_path: Path, proxy: str) -> None:
    prefix = "/factory/inspect/"
    arguments = ["--config", "compact", *compact_overrides]
    with (
        browser.running_demo(arguments, GRADIO_ROOT_PATH=prefix.rstrip("/")) as address,
        browser.behind_nginx(address, tmp_path) if proxy == "nginx" else browser.proxied(address, prefix) as shown,
        browser.window(shown, DESKTOP, "zh-CN") as window,
    ):
        page = window.page
        page.locator("#photo input[type=file]").set_input_files(EXAMPLES / "washer" / "defect.jpg")
        page.locator("#summary .verdict b").wait_for()
        page.locator("#map img").first.wait_for()
        assert window.ask()
        page.locator("#languages a[lang=en]").click()
        page.get_by_text(TEXTS["en"]["no_verdict"]).wait_for()
        window.click_example(FABRIC)
        page.locator("#map img").first.wait_for()
        asked = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
        own = (shown, "data:", "blob:", urljoin(shown, "/favicon.ico"))  # that one the browser asks for by itself
        assert [each for each in asked if not each.startswith(own)] == []
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_region_mark_and_message_in_a_browser(page_address: str, tmp_path: Path) -> None:
    part, texts = EXAMPLES / "washer", TEXTS["zh"]
    (tmp_path / "text.png").write_text("no photo")
    with browser.window(page_address, PHONE, "zh-CN") as window:
        page = window.page
        page.locator("#photo input[type=file]").set_input_files(tmp_path / "text.png")
        page.get_by_text("text.png：无法作为图片读取").wait_for()
        page.get_by_role("tab").nth(1).click()
        page.locator("#part input[type=file]").set_input_files(sorted(part.glob("good*")))
        page.locator("#part").get_by_text("good_2").wait_for()
        page.locator("#learn").click()
        page.locator("#learned p").first.wait_for()
        page.get_by_role("tab").nth(0).click()
        page.locator("#photo input[type=file]").set_input_files(part / "defect.jpg")
        pressed = page.locator("#summary button[aria-pressed=true]")
        page.locator("#summary button").first.press("Enter")
        assert pressed.inner_text() == "1"
        pressed.click()
        pressed.wait_for(state="detached")
        page.locator("#feedback button").nth(1).click()
        page.get_by_text(texts["marked"].format(good=0, bad=1)).first.wait_for()
        page.locator("#feedback button").nth(2).click()
        page.get_by_text(texts["marked"].format(good=0, bad=1)).first.wait_for(state="detached")
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_forty_photos_in_a_browser(page_address: str, tmp_path: Path) -> None:
    photos = []
    for number in range(40):
        name = ("good_1", "good_2", "defect")[number % 3]
        photos.append(tmp_path / f"{name}_{number}.jpg")
        shutil.copy(EXAMPLES / "washer" / f"{name}.jpg", photos[-1])
    with browser.window(page_address, PHONE) as window:
        page = window.page
        page.get_by_role("tab").nth(1).click()
        page.locator("#part input[type=file]").set_input_files(photos[:2])
        page.locator("#part").get_by_text("good_2").wait_for()
        page.locator("#learn").click()
        page.locator("#learned p").first.wait_for()
        page.get_by_role("tab").nth(2).click()
        page.locator("#photos input[type=file]").set_input_files(photos)
        page.locator("#photos").get_by_text("good_1_39").wait_for()
        page.locator("#run").click()
        page.locator("#line").get_by_text("27 good, 13 defective").wait_for()
        page.locator("#result_files a").nth(2).wait_for()
        table = page.locator("#results").inner_text()
        assert table.index("defect_") < (table + "good_").index("good_")
        with page.expect_download() as started_download:
            page.locator("#result_files a").nth(2).click()
        report = started_download.value.path().read_text(encoding="utf-8")
        assert report.index("defect_38") < report.index("good_1_0")
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_another_model_is_chosen_in_a_browser(page_address: str) -> None:
    with browser.window(page_address, DESKTOP) as window:
        page = window.page
        window.click_example(WASHER)
        page.locator("#summary .verdict b").wait_for()
        before = page.locator("#map img").last.get_attribute("src")
        page.locator("#model input").click()
        page.get_by_role("option", name="compact_best").click()
        changed = "before => document.querySelectorAll('#map img')[1]?.getAttribute('src') !== before"
        page.wait_for_function(changed, arg=before)
        assert window.ask("Where is it?")
        assert window.errors == []


# The contrast of text with what is behind it, as the Web Content Accessibility Guidelines compute it.
CONTRASTS = """names => Object.fromEntries(names.map(name => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const linear = value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = text => [0.2126, 0.7152, 0.0722].reduce((sum, n, i) => sum + n * linear(numbers(text)[i] / 255), 0);
  const element = document.querySelector(name);
  let behind = element;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const both = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return [name, (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05)];
}))"""
SHOWN = ("#title h1", "#languages a", "#summary .verdict b", "#summary p", "#summary td", "#summary td button")
SHOWN += ("#suggestions button", "#chat .message.bot", "#chat .message.user", "#adjust button", "#class input")


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("scheme", "size"), [("dark", PHONE), ("dark", DESKTOP), ("light", PHONE)])
def test_words_can_be_read_in_both_themes_and_nothing_is_wider_than_the_screen(
    page_address: str, scheme: str, size: dict[str, int]
) -> None:
    with browser.window(page_address, size, color_scheme=scheme) as window:
        page = window.page
        window.click_example(GEAR)
        page.locator("#summary .verdict b").get_by_text(TEXTS["en"]["can't tell"], exact=True).wait_for()
        window.click_example(PCB)
        page.locator("#summary td").first.wait_for()
        assert is_in_reach(page, "#summary td >> nth=0")
        assert window.ask()
        brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[1]")
        assert (brightness < 80) == (scheme == "dark")
        assert {name: ratio for name, ratio in page.evaluate(CONTRASTS, SHOWN).items() if ratio < 4.5} == {}
        assert page.evaluate("document.documentElement.scrollWidth") == size["width"]
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_photo_of_the_camera_and_of_the_clipboard(page_address: str) -> None:
    with browser.window(page_address, permissions=["camera", "clipboard-read", "clipboard-write"]) as window:
        page = window.page
        page.locator("#photo button[aria-label='Capture from camera']").click()
        page.get_by_text("Click to Access Webcam").click()
        page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")  # the camera is on
        page.locator("#photo button[aria-label='capture photo']").click()
        page.locator("#summary .verdict b").wait_for()
        page.locator("#photo button[aria-label='Remove Image']").click()
        page.get_by_text(TEXTS["en"]["no_verdict"]).wait_for()
        page.evaluate(
            """async () => {
              const canvas = Object.assign(document.createElement('canvas'), {width: 70, height: 40});
              canvas.getContext('2d').fillRect(20, 10, 30, 20);
              const blob = await new Promise(made => canvas.toBlob(made, 'image/png'));
              await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
            }"""
        )
        page.locator("#photo button[aria-label='Paste from clipboard']").click()
        page.locator("#summary .verdict b").wait_for()
        assert page.locator("#photo img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [70, 40]
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_opacity_slider_uncovers_the_photo(page_address: str) -> None:
    def painted(page: Any) -> float:
        """How much the overlay differs from the photo beside it."""
        pictures = [page.request.get(image.get_attribute("src")).body() for image in page.locator("#map img").all()]
        photo, shown = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB"), dtype=float) for each in pictures)
        return float(np.abs(photo - shown).mean())

    with browser.window(page_address, DESKTOP) as window:
        page = window.page
        window.click_example(WASHER)
        page.locator("#summary td").first.wait_for()
        before, covered = page.locator("#map img").last.get_attribute("src"), painted(page)
        page.locator("#adjust button").first.click()
        page.locator("#opacity input[type=number]").fill("0")
        page.locator("#opacity input[type=number]").press("Enter")
        changed = "before => document.querySelectorAll('#map img')[1]?.getAttribute('src') !== before"
        page.wait_for_function(changed, arg=before)
        assert painted(page) < covered / 3  # frames stay
        assert window.errors == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)
def test_answer_that_takes_too_long_ends_and_says_so(compact_overrides: list[str]) -> None:
    before = "from anomalygpt.inference import session; session.ANSWER_SECONDS = 0"
    with (
        browser.running_demo(["--config", "compact", *compact_overrides], before=before) as address,
        browser.window(address) as window,
    ):
        window.click_example(FABRIC)
        window.page.locator("#map img").first.wait_for()
        assert window.ask("Is there any anomaly, and where is it?").endswith(TEXTS["en"]["too_long"])
        assert window.errors == []
