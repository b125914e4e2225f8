"""The demo: what its handlers do, and once as a person sees it, in a browser."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
import torch
from PIL import Image

from anomalygpt import web_demo
from anomalygpt.config.schema import InferenceConfig
from anomalygpt.errors import UserError
from anomalygpt.inference.predictor import Look, Prediction, prediction
from anomalygpt.inference.regions import Region
from anomalygpt.web_demo import Session, ask, find_examples, free_port, read_inputs, start_over
from tests import browser
from tests.processes import started

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "pretrained_ckpt"
COMPACT = WEIGHTS / "anomalygpt_compact" / "model.safetensors"
ALL_PARTS = ("image_decoder", "prompt_learner", "states", "llama_proj", "lora")
EXAMPLES = ROOT / web_demo.EXAMPLES


class FakePredictor:
    """Answers at once, and remembers what it was given."""

    settings = InferenceConfig()

    def __init__(self, speaks: bool = True, word: str = "Yes") -> None:
        self.model = SimpleNamespace(speaks=speaks)
        self.word = word
        self.references = 0
        self.looks: list[str] = []
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []

    def set_references(self, photos: Sequence[Image.Image]) -> None:
        self.references = len(photos)

    def look(self, photo: Image.Image, class_name: str) -> Look:
        self.looks.append(class_name)
        anomaly_map = np.zeros((photo.height, photo.width), dtype=np.float32)
        anomaly_map[:4, :4] = 1
        region = Region(box=(0, 0, 4, 4), area=0.01, position="top left", peak=1.0)
        return look(anomaly_map, region, class_name)

    def answer(self, look: Look, question: str, history: Sequence[tuple[str, str]]) -> str:
        self.asked.append((question, list(history)))
        return f"{self.word}, {look.class_name} number {len(self.asked)}."

    def ask(self, look: Look, question: str, history: Sequence[tuple[str, str]]) -> Prediction:
        answer = self.answer(look, question, history) if self.model.speaks else ""
        return prediction(look, question, answer)


def look(anomaly_map: np.ndarray, region: Region, class_name: str) -> Look:
    map_ = torch.zeros(1, 1, 224, 224)
    return Look(None, map_, anomaly_map, 1.0, 0.5, (region,), class_name, 0.97, map_)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (40 * number, 80, 80)).save(path)
    return [str(path) for path in paths]


def asked(
    photo: str | None,
    question: str = "",
    references: Sequence[str] = (),
    class_name: str = "",
    session: Session | None = None,
) -> tuple[list[Any], Session]:
    """Everything that one question puts on the page, and the session after it."""
    gallery = [(path, None) for path in references]
    steps = list(ask(FakePredictor, question, photo, gallery, class_name, session))  # type: ignore[arg-type]
    return [step[:4] for step in steps], steps[-1][4]


def test_question_map_and_answer_appear_one_after_the_other(photos: list[str]) -> None:
    steps, _ = asked(photos[0], "What is it?")
    assert [bubble["content"] for bubble in steps[0][0]] == ["What is it?", web_demo.PENDING]
    assert steps[1][1].size == (40, 30)
    assert "97 % probable, score 1.000, threshold 0.500" in steps[1][2]
    assert "Defect" not in steps[1][2]
    assert [bubble["content"] for bubble in steps[2][0]] == ["What is it?", "Yes, object number 1."]
    assert "Defect" in steps[2][2]
    assert "top left" in steps[2][2]


def test_photo_is_encoded_once_however_often_it_is_asked_about(photos: list[str]) -> None:
    _, session = asked(photos[0], "Is it fine?")
    steps, session = asked(photos[0], "Where is it?", session=session)
    predictor: Any = session.predictor
    assert predictor.looks == ["object"]
    assert predictor.asked[1] == ("Where is it?", [("Is it fine?", "Yes, object number 1.")])
    assert len(steps[-1][0]) == 4


def test_later_questions_are_set_right_too_and_the_verdict_on_the_page_is_the_first(photos: list[str]) -> None:
    _, session = asked(photos[0], "How large is it?")
    predictor: Any = session.predictor
    predictor.ask = lambda look, question, history: prediction(look, question, "No, set right.")
    steps, session = asked(photos[0], "Is there any defect?", session=session)
    assert steps[-1][0][-1]["content"] == "No, set right."
    assert session.talk is not None
    assert session.talk.found is not None
    assert session.talk.found.question == "How large is it?"


@pytest.mark.parametrize("change", ["photo", "references", "class"])
def test_other_inputs_begin_another_conversation(photos: list[str], change: str) -> None:
    _, session = asked(photos[0], "Is it fine?", [photos[1]], "nut")
    photo = photos[2] if change == "photo" else photos[0]
    references = photos[3:5] if change == "references" else [photos[1]]
    steps, session = asked(photo, "And now?", references, "bolt" if change == "class" else "nut", session)
    predictor: Any = session.predictor
    assert predictor.asked[-1] == ("And now?", [])
    assert len(predictor.looks) == 2
    assert len(steps[-1][0]) == 2


def test_two_browsers_keep_their_references_apart(photos: list[str]) -> None:
    _, first = asked(photos[0], references=photos[1:4])
    _, second = asked(photos[0], references=photos[4:5])
    _, first = asked(photos[5], references=photos[1:4], session=first)
    assert first.predictor is not second.predictor
    assert first.predictor.references == 3  # type: ignore[attr-defined]
    assert second.predictor.references == 1  # type: ignore[attr-defined]


def test_references_that_were_taken_away_are_forgotten(photos: list[str]) -> None:
    _, session = asked(photos[0], references=photos[1:3])
    _, session = asked(photos[0], session=session)
    assert session.predictor.references == 0  # type: ignore[attr-defined]


def test_only_the_latest_sessions_hold_encoded_photos_and_the_others_notice_nothing(photos: list[str]) -> None:
    _, first = asked(photos[0], "Is this zipper fine?", photos[1:3])
    later = [asked(photos[3], references=photos[1:2])[1] for _ in range(web_demo.MOST_REMEMBERED)]
    predictor: Any = first.predictor
    assert first.talk is not None
    assert (predictor.references, first.talk.look) == (0, None)
    assert all(session.predictor.references == 1 for session in later)  # type: ignore[attr-defined]

    steps, first = asked(photos[0], "Where is it?", photos[1:3], session=first)
    assert predictor.references == 2
    assert predictor.looks == ["zipper", "zipper"]
    assert predictor.asked[1] == ("Where is it?", [("Is this zipper fine?", "Yes, zipper number 1.")])
    assert "Good" in steps[-1][2]  # the first answer's
    assert later[0].predictor.references == 0  # type: ignore[attr-defined]


def test_of_a_conversation_that_was_forgotten_no_map_is_left(photos: list[str]) -> None:
    _, session = asked(photos[0])
    session.forget()
    assert session.talk is not None
    assert session.talk.found is not None
    assert session.talk.found.image.map.nbytes == 0


def test_new_photo_clears_the_chat(photos: list[str]) -> None:
    _, session = asked(photos[0], references=[photos[1]])
    same = start_over(photos[0], [(photos[1], None)], session)
    assert all("value" not in update for update in same)
    chat, picture, summary, session = start_over(photos[2], [(photos[1], None)], session)
    assert (chat, picture, summary) == ([], None, web_demo.NO_VERDICT)
    assert session.talk is None


def test_answer_about_a_photo_that_was_replaced_is_dropped(photos: list[str]) -> None:
    session = Session(FakePredictor())  # type: ignore[arg-type]
    steps = ask(FakePredictor, "Is it fine?", photos[0], [], "", session)  # type: ignore[arg-type]
    next(steps)
    start_over(photos[1], [], session)
    assert list(steps) == []
    assert session.talk is None


def test_no_photo_is_one_warning() -> None:
    with pytest.warns(UserWarning, match="no photo yet"):
        steps, _ = asked(None, "Is it fine?")
    assert steps[-1][0] == []
    assert steps[-1][3] == "Is it fine?"


def test_unreadable_photo_is_one_warning_without_the_servers_folders(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture at all")
    with pytest.warns(UserWarning, match=r"^broken\.png: cannot be read") as caught:
        steps, session = asked(str(path))
    assert str(tmp_path) not in str(caught[0].message)
    assert steps[-1][0] == []
    assert session.talk is not None


def test_too_many_references_are_refused(photos: list[str]) -> None:
    with pytest.raises(UserError, match="5 good photos are too many: keep 4"):
        read_inputs(photos[0], [(path, None) for path in photos[1:]], "")


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("", "Is there any anomaly in the image?"),
        ("nut", "This is a photo of a nut for anomaly detection. Is there any anomaly in the image?"),
    ],
)
def test_empty_question_asks_for_anomalies(photos: list[str], class_name: str, expected: str) -> None:
    _, session = asked(photos[0], "  ", class_name=class_name)
    assert session.predictor.asked[0][0] == expected  # type: ignore[attr-defined]


def test_part_that_the_question_names_is_what_is_looked_for(photos: list[str]) -> None:
    _, session = asked(photos[0], "Is this zipper fine?")
    assert session.predictor.looks == ["zipper"]  # type: ignore[attr-defined]


def test_model_without_language_still_gives_a_verdict(photos: list[str]) -> None:
    session = Session(FakePredictor(speaks=False))  # type: ignore[arg-type]
    steps, _ = asked(photos[0], session=session)
    assert steps[-1][0][-1]["content"] == web_demo.MAP_ONLY
    assert "Defect" in steps[-1][2]
    assert "Verdict from the score" in steps[-1][2]


def test_answer_that_the_score_contradicts_says_so(photos: list[str]) -> None:
    session = Session(FakePredictor(word="No"))  # type: ignore[arg-type]
    steps, _ = asked(photos[0], session=session)
    assert "Good" in steps[-1][2]
    assert "Verdict from the answer, which the score contradicts." in steps[-1][2]


def test_markup_in_a_position_or_a_name_stays_text(photos: list[str]) -> None:
    talk = web_demo.Talk(read_inputs(photos[0], None, ""))
    region = Region((0, 0, 1, 1), 0.1, "<script>", 1.0)
    talk.look = look(np.zeros((1, 1), np.float32), region, "x")
    assert "<script>" not in web_demo.verdict(talk)


def test_busy_port_gives_way_to_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + web_demo.PORTS_TRIED
    assert free_port("127.0.0.1", 0) > 0


def test_port_that_is_taken_while_the_model_is_loaded_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    port, served = free_port("127.0.0.1", 0), []
    with socket.socket() as taken:

        def load(*_: object) -> type[FakePredictor]:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            return FakePredictor

        monkeypatch.setattr(web_demo, "predictors", load)
        monkeypatch.setattr(web_demo, "serve", lambda _demo, _host, port, _share: served.append(port))
        web_demo.main(["--config", "compact", "--port", str(port)])
    assert served[0] > port


def test_port_that_is_taken_at_the_last_moment_is_told_in_one_line(tmp_path: Path) -> None:
    demo = web_demo.build_demo(FakePredictor, examples=tmp_path)  # type: ignore[arg-type]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--port {port}: no page can be served there") as error:
            web_demo._open(demo, "127.0.0.1", port, share=False)
    assert "\n" not in str(error.value)


def test_questions_that_wait_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = web_demo.build_demo(FakePredictor, examples=tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(demo, "launch", lambda **_: None)
    web_demo._open(demo, "127.0.0.1", 1, share=False)
    assert demo._queue.max_size == web_demo.MOST_WAITING


# A page with a public link, or what Gradio takes for one.
SHARED = """
import subprocess, sys
from gradio.tunneling import CURRENT_TUNNELS, Tunnel
from anomalygpt import web_demo
from tests.test_web_demo import FakePredictor

tunnel = Tunnel("", 0, "", 0, "", None)
tunnel.proc = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
CURRENT_TUNNELS.append(tunnel)
web_demo.serve(web_demo.build_demo(FakePredictor), "127.0.0.1", web_demo.free_port("127.0.0.1", 0), False)
print("tunnel", tunnel.proc)
"""


def test_a_demo_that_is_told_to_stop_ends_its_public_link_and_removes_uploads(tmp_path: Path) -> None:
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"PYTHONPATH": f"{ROOT / 'code'}:{ROOT}", "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-c", SHARED]
    with started(command, env=environment, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        address = demo.stdout.readline().split()[1] + "/gradio_api"
        page = requests.Session()
        page.trust_env = False  # no proxy
        page.post(f"{address}/upload", files={"files": ("photo.png", b"photo")}).raise_for_status()
        assert [path.read_bytes() for path in tmp_path.rglob("*.png")] == [b"photo"]
        with page.get(f"{address}/heartbeat/me", stream=True):  # as an open page does
            demo.send_signal(signal.SIGTERM)
            said = demo.communicate(timeout=60)[0]
    assert demo.returncode == 0
    assert said.endswith("tunnel None\n")
    assert list(tmp_path.rglob("*.png")) == []


def test_shipped_examples_are_small_and_have_references() -> None:
    examples = find_examples(EXAMPLES)
    assert [example.class_name for example in examples] == ["fabric", "pcb", "washer"]
    for example in examples:
        assert len(example.references) == 2
        assert all(path.stat().st_size <= 80_000 for path in (example.photo, *example.references))


def test_page_without_examples_has_no_row_of_them(tmp_path: Path) -> None:
    def kinds(folder: Path) -> list[str]:
        demo = web_demo.build_demo(FakePredictor, examples=folder)  # type: ignore[arg-type]
        return [type(block).__name__ for block in demo.blocks.values()]

    assert "Dataset" not in kinds(tmp_path / "nowhere")
    assert "Dataset" in kinds(EXAMPLES)


@pytest.fixture(scope="module")
def compact_model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that start the compact model: with its trained delta where there is one, else untrained."""
    for needed in (WEIGHTS / "dinov2_vits14" / "model.safetensors", WEIGHTS / "smollm2_135m_instruct"):
        if not needed.exists():
            pytest.skip(f"needs {needed.relative_to(ROOT)} (python fetch_weights.py)")
    arguments = ["--config", "compact", "--set", "llm.generation.max_new_tokens=16"]
    if COMPACT.exists():
        return arguments
    from anomalygpt.config.load import load_config
    from anomalygpt.model.build import build_model
    from anomalygpt.model.checkpoint import delta_tensors, save_tensors

    path = tmp_path_factory.mktemp("delta") / "model.safetensors"
    model = build_model(load_config("compact", ["deltas=[]"]), torch.device("cpu"))
    save_tensors(delta_tensors(model, ALL_PARTS, torch.float16), path)
    return [*arguments, f"deltas=[{{path: {path}, parts: [{', '.join(ALL_PARTS)}]}}]"]


@pytest.mark.weights
@pytest.mark.timeout(900)  # a quiet machine needs half a minute
def test_demo_in_a_browser(compact_model: list[str], tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs playwright")
    if browser.installed_browser() is None:
        pytest.skip(f"needs a browser: none of {', '.join(browser.BROWSERS)} is installed")
    example = find_examples(EXAMPLES)[0]
    with browser.running_demo(compact_model) as address, browser.window(address) as window:
        page = window.page
        page.locator("#send").click()
        page.get_by_text("There is no photo yet").wait_for()

        page.locator("#photo input[type=file]").set_input_files(example.photo)
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
