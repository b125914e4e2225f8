"""The demo: its handlers, and once all of it in a browser."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from anomalygpt import web_demo
from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.errors import UserError
from anomalygpt.inference.session import Conversation, SharedModel
from anomalygpt.web_demo import ask, find_examples, start_over, verdict_html
from tests import browser
from tests.fake_predictor import FakePredictor, result_with, write_photos
from tests.processes import started
from tests.shared_data import ROOT

EXAMPLES = ROOT / web_demo.EXAMPLES


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return write_photos(tmp_path, 3)


def asked(
    photo: str | None, question: str = "", references: Any = (), class_name: str = "", predictor: Any = None
) -> tuple[list[Any], Conversation]:
    """Everything that one question puts on the page, and the conversation after it."""
    model = SharedModel(lambda: predictor or FakePredictor())
    steps = list(ask(model, question, photo, references, class_name, None))
    return [step[:4] for step in steps], steps[-1][4]


def test_question_map_and_answer_appear_one_after_the_other(photos: list[str]) -> None:
    steps, _ = asked(photos[0], "What is it?")
    assert [bubble["content"] for bubble in steps[0][0]] == ["What is it?", web_demo.PENDING]
    assert steps[1][1].size == (40, 30)
    assert "97 % probable, score 1.000, threshold 0.500" in steps[1][2]
    assert "Defect" not in steps[1][2]
    assert [bubble["content"] for bubble in steps[2][0]] == ["What is it?", "Yes,"]
    assert [bubble["content"] for bubble in steps[-1][0]] == ["What is it?", "Yes, object number 1."]
    assert "Defect" in steps[-1][2] and "top left" in steps[-1][2]
    steps, _ = asked(photos[0], predictor=FakePredictor(word="No"))
    assert "Good" in steps[-1][2]
    assert "Verdict from the answer, which the score contradicts." in steps[-1][2]


def test_new_photo_clears_the_chat(photos: list[str]) -> None:
    references = [(photos[1], None)]
    _, conversation = asked(photos[0], references=references)
    assert all("value" not in update for update in start_over(photos[0], references, conversation))
    assert start_over(photos[2], references, conversation) == ([], None, web_demo.NO_VERDICT, None)


def test_answer_about_a_photo_that_was_replaced_is_dropped(photos: list[str]) -> None:
    steps = ask(SharedModel(FakePredictor), "Is it fine?", photos[0], [], "", None)  # type: ignore[arg-type]
    conversation = next(steps)[4]
    start_over(photos[1], [], conversation)
    assert list(steps) == []


def test_no_photo_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="no photo yet"):
        steps, _ = asked(None, "Is it fine?")
    assert (steps[-1][0], steps[-1][3]) == ([], "Is it fine?")


def test_empty_question_asks_for_anomalies(photos: list[str]) -> None:
    described = "This is a photo of a nut for anomaly detection. "
    for class_name, description in (("", ""), ("nut", described)):
        asked(photos[0], "  ", class_name=class_name, predictor=(predictor := FakePredictor()))
        assert predictor.asked[0][0] == f"{description}Is there any anomaly in the image?"


def test_markup_in_a_position_or_a_name_stays_text() -> None:
    region = RegionFinding("<script>", (0, 0, 1, 1), 0.1, 1.0, "compact")
    assert "<script>" not in verdict_html(Conversation(Path("a.png")), result_with(region, "x"))


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
    assert f"{option} {value}: no page can be served there" in printed.err
    assert words in printed.err


def test_port_that_is_taken_at_the_last_moment_is_one_line(tmp_path: Path) -> None:
    demo = web_demo.build_demo(FakePredictor, examples=tmp_path)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^no page can be served on 127.0.0.1 \(.*{port}.*--port$") as error:
            web_demo.serve(demo, "127.0.0.1", port, share=False)
    assert "\n" not in str(error.value)
    assert demo._queue.max_size == web_demo.MAX_WAITING


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
    assert [class_name for _, _, class_name in examples] == ["fabric", "pcb", "washer"]
    for photo, references, _ in examples:
        assert len(references) == 2
        assert all(Path(path).stat().st_size <= 80_000 for path in (photo, *references))
    for folder in (Path("nowhere"), EXAMPLES):
        demo = web_demo.build_demo(FakePredictor, examples=folder)  # type: ignore[arg-type]
        assert ("Dataset" in {type(block).__name__ for block in demo.blocks.values()}) == (folder == EXAMPLES)


@pytest.mark.weights
@pytest.mark.timeout(900)  # a quiet machine needs half a minute
def test_demo_in_a_browser(compact_overrides: list[str], tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs playwright")
    if browser.installed_browser() is None:
        pytest.skip(f"needs a browser: none of {', '.join(browser.BROWSERS)} is installed")
    arguments = ["--config", "compact", "--set", "llm.generation.max_new_tokens=16", *compact_overrides]
    photo, _, _ = find_examples(EXAMPLES)[0]
    with browser.running_demo(arguments) as address, browser.window(address) as window:
        page = window.page
        page.locator("#send").click()
        page.get_by_text("There is no photo yet").wait_for()

        page.locator("#photo input[type=file]").set_input_files(photo)
        page.locator("#photo img").wait_for()
        assert window.ask("Is there any anomaly in the image?")
        page.locator("#map img").wait_for()
        page.locator("#summary .verdict b.defect, #summary .verdict b.good").wait_for()
        assert window.ask("Where is it?")
        assert page.locator("#chat .message.user").count() == 2

        window.click_example(1)
        page.locator("#references img").first.wait_for()
        page.get_by_text("Upload a photo or click an example").wait_for()  # the chat is empty again
        assert page.locator("#map img").count() == 0
        assert window.ask()
        page.locator("#map img").wait_for()
        page.screenshot(path=tmp_path / "demo.png")
        assert window.errors == []
        assert window.foreign == []
    assert Image.open(tmp_path / "demo.png").size == (1280, 800)
