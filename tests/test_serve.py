"""The server over real connections, with the real model: curl, openai, schemathesis, many clients at once."""

import base64
import io
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
from PIL import Image

from anomalygpt.datasets.photos import load_image
from anomalygpt.inference.language_models import PromptedModel
from anomalygpt.serve import main
from anomalygpt.serving.app import Limits, build_app
from tests.processes import serving, started, wait_until
from tests.shared_data import ROOT

pytestmark = pytest.mark.weights
EXAMPLES = ROOT / "images" / "examples"
DEFECT = EXAMPLES / "pcb" / "defect.jpg"
OTHER = EXAMPLES / "hazelnut" / "defect.jpg"
GOOD = sorted((EXAMPLES / "pcb").glob("good_*.jpg"))


@contextmanager
def served(predictor: Any, parts: Path, limits: Limits | None = None) -> Iterator[str]:
    """The server's address; it ends with the block."""
    with serving(build_app(predictor, parts, limits or Limits())) as address:
        yield address


@pytest.fixture(scope="module")
def base(compact_predictor: Any) -> Any:
    """A predictor without references that no other test changes."""
    return compact_predictor.without_references()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture(scope="module")
def url(base: Any, parts: Path) -> Iterator[str]:
    """A server that knows the part ``circuit board``."""
    with served(base, parts) as address:
        taught = requests.put(f"{address}/v1/parts/circuit board", files=[("photos", path.open("rb")) for path in GOOD])
        assert taught.json()["references"] == 2, taught.text
        yield address


def inspect(url: str, photo: bytes, **fields: str) -> requests.Response:
    return requests.post(f"{url}/v1/inspect", files={"photo": photo}, data=fields, timeout=120)


def data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def asked(text: str, path: Path = DEFECT) -> dict[str, Any]:
    """A message with a photo."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": data_uri(path)}}],
    }


def png(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.mark.parametrize("part", ["default", "circuit board"])
def test_verdict_regions_map_and_answer_are_the_predictors(part: str, base: Any, url: str) -> None:
    predictor = base.without_references()
    predictor.set_references([load_image(path) for path in GOOD] if part != "default" else [])
    expected = next(predictor.predict_batch([load_image(DEFECT)], "Where is it?"))
    found = inspect(url, DEFECT.read_bytes(), part=part, question="Where is it?", map="tiff").json()
    with Image.open(io.BytesIO(base64.b64decode(found.pop("map")))) as picture:
        np.testing.assert_allclose(np.asarray(picture), expected.image.map, atol=1e-5)
    assert found == {"part": part, **json.loads(json.dumps(expected.to_dict())), "warnings": []}


def test_json_with_a_data_uri_gives_what_a_form_gives(url: str) -> None:
    body = {"photo": data_uri(DEFECT), "part": "circuit board", "map": "png"}
    found = requests.post(f"{url}/v1/inspect", json=body).json()
    with Image.open(io.BytesIO(base64.b64decode(found["map"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (512, 512))
    assert found == inspect(url, DEFECT.read_bytes(), part="circuit board", map="png").json()


def test_part_survives_a_restart_until_it_is_deleted(base: Any, tmp_path: Path) -> None:
    photo = DEFECT.read_bytes()
    with served(base, tmp_path) as url:
        files = [("photos", (path.name, path.read_bytes())) for path in [*GOOD, GOOD[0]]]
        assert requests.put(f"{url}/v1/parts/板 1.b", files=files).json()["references"] == 2  # a copy counts once
        before = inspect(url, photo, part="板 1.b").json()
    with served(base, tmp_path) as url:
        assert requests.get(f"{url}/v1/parts").json() == {"parts": ["板 1.b"]}
        assert [each["id"] for each in requests.get(f"{url}/v1/models").json()["data"]] == ["default", "板 1.b"]
        assert requests.get(f"{url}/v1/parts/板 1.b").json()["report"][0].startswith("2 references")
        assert inspect(url, photo, part="板 1.b").json() == before
        again = requests.put(f"{url}/v1/parts/板 1.b", files=files[:1])
        assert again.json()["references"] == 1
        assert inspect(url, photo, part="板 1.b").json()["references"] == 1
        assert requests.delete(f"{url}/v1/parts/板 1.b").status_code == 204
        assert inspect(url, photo, part="板 1.b").status_code == 404
    assert list(tmp_path.iterdir()) == []


def test_verdict_learns_what_a_person_says_and_the_part_keeps_it(base: Any, tmp_path: Path) -> None:
    photo, feedback = DEFECT.read_bytes(), "v1/parts/board/feedback"
    with served(base, tmp_path) as url:
        requests.put(f"{url}/v1/parts/board", files=[("photos", path.read_bytes()) for path in GOOD])
        before = inspect(url, photo, part="board").json()["probability"]
        said = requests.post(f"{url}/{feedback}", files={"photo": photo}, data={"label": "good"})
        assert said.json()["references"] == 2, said.text
        learned = inspect(url, photo, part="board").json()["probability"]
        assert learned < before
        other = requests.post(f"{url}/{feedback}", files={"photo": OTHER.read_bytes()}, data={"label": "good"})
        assert other.status_code == 422 and "of the same part" in other.json()["error"]["message"]
        assert requests.post(f"{url}/{feedback}", files={"photo": photo}, data={"label": "fine"}).status_code == 400
        assert (
            requests.post(f"{url}/v1/parts/x/feedback", files={"photo": photo}, data={"label": "bad"}).status_code
            == 404
        )
    with served(base, tmp_path) as url:
        assert inspect(url, photo, part="board").json()["probability"] == learned
        requests.post(f"{url}/{feedback}", files={"photo": photo}, data={"label": "neither"})
        assert inspect(url, photo, part="board").json()["probability"] == before
        requests.post(f"{url}/{feedback}", files={"photo": photo}, data={"label": "good"})
        assert requests.delete(f"{url}/{feedback}").status_code == 204
        assert inspect(url, photo, part="board").json()["probability"] == before


def test_openai_client_chats_and_streams_with_the_earlier_turns(base: Any, url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    assert [each.id for each in client.models.list()] == ["default", "circuit board"]
    first = [asked("Is there any defect?")]
    answer = client.chat.completions.create(model="circuit board", messages=first)
    text = answer.choices[0].message.content
    assert answer.model_extra["findings"]["references"] == 2

    follow_up = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "How many are there?"}]
    chunks = list(client.chat.completions.create(model="circuit board", messages=follow_up, stream=True))
    predictor = base.without_references()
    predictor.set_references([load_image(path) for path in GOOD])
    image = predictor.inspect(load_image(DEFECT))
    expected = predictor.ask(image, "How many are there?", [("Is there any defect?", text)])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.answer
    assert chunks[-1].choices[0].finish_reason == "stop"

    with pytest.raises(openai.NotFoundError, match="no part 'screw'"):
        client.chat.completions.create(model="screw", messages=first)
    far = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]}]
    with pytest.raises(openai.BadRequestError, match="is not fetched"):
        client.chat.completions.create(model="default", messages=far)
    with pytest.raises(openai.BadRequestError, match="no photo"):
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "Hello"}])


def test_answer_is_sampled_as_the_request_says(base: Any, url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    predictor = base.without_references()
    predictor.set_references([load_image(path) for path in GOOD])
    generation = predictor.generation.model_copy(update={"temperature": 0, "max_new_tokens": 3})
    predictor.language_model = PromptedModel(predictor.model, generation)
    expected = predictor.ask(predictor.inspect(load_image(DEFECT)), "What is the color of the board?")
    question = [asked("What is the color of the board?")]
    sampling = {"temperature": 0, "max_completion_tokens": 3}
    answer = client.chat.completions.create(model="circuit board", messages=question, **sampling)
    assert answer.choices[0].message.content == expected.answer
    assert answer.model_extra["findings"]["answer_source"] == expected.answer_source
    with pytest.raises(openai.BadRequestError, match="body: temperature: .* greater than or equal to 0"):
        client.chat.completions.create(model="circuit board", messages=question, temperature=-1)


def test_what_reading_a_photo_said_is_in_the_answer(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    page = Image.open(DEFECT)
    page.save(file := io.BytesIO(), "TIFF", save_all=True, append_images=[page])
    found = inspect(url, file.getvalue()).json()["warnings"]
    assert [each.split(";")[0] for each in found] == ["the photo: page 1 of 2 is read"]
    again = requests.put(f"{url}/v1/parts/pages", files=[("photos", ("good.tif", file.getvalue()))]).json()["warnings"]
    assert [each.split(";")[0] for each in again] == ["good.tif: page 1 of 2 is read"]
    assert requests.delete(f"{url}/v1/parts/pages").status_code == 204
    assert capfd.readouterr().err == ""


def test_full_disk_and_vanished_file_are_errors_and_the_part_stays(base: Any, tmp_path: Path) -> None:
    files, limits = [("photos", path.read_bytes()) for path in GOOD], resource.getrlimit(resource.RLIMIT_FSIZE)
    with served(base, tmp_path) as url:
        requests.put(f"{url}/v1/parts/board", files=files).raise_for_status()
        before = inspect(url, DEFECT.read_bytes(), part="board").json()
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "board.safetensors").stat().st_size // 2, limits[1]))
        try:
            full = requests.put(f"{url}/v1/parts/board", files=files)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert full.status_code == 500
        message = full.json()["error"]["message"]
        assert "be written" in message and "\n" not in message and str(tmp_path) not in message
        assert [path.name for path in tmp_path.iterdir()] == ["board.safetensors"]
        assert inspect(url, DEFECT.read_bytes(), part="board").json() == before
        (tmp_path / "board.safetensors").unlink()
        gone = inspect(url, DEFECT.read_bytes(), part="board")
        assert (gone.status_code, "no part 'board'" in gone.text) == (404, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_photos_teach_a_part_and_one_more_is_refused(
    base: Any, tmp_path: Path, photo: Callable[..., Image.Image]
) -> None:
    files = [("photos", (f"{number}.png", png(photo((96, 96), seed=number)))) for number in range(201)]
    with served(base, tmp_path) as url:
        assert requests.put(f"{url}/v1/parts/many", files=files).status_code == 400
        taught = requests.put(f"{url}/v1/parts/many", files=files[:200])
        assert (taught.status_code, taught.json()["references"]) == (200, 200), taught.text
        assert inspect(url, files[200][1][1], part="many").json()["references"] == 200


def test_curl(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    command = ["curl", "--silent", "--fail", "-F", f"photo=@{DEFECT}", "-F", "part=circuit board", f"{url}/v1/inspect"]
    assert json.loads(subprocess.check_output(command))["status"] == "defective"
    assert requests.get(f"{url}/healthz").json() == {"status": "ok"}
    assert re.search(
        r'^anomalygpt_requests_total\{route="/v1/inspect",status="200"\} \d+$',
        requests.get(f"{url}/metrics").text,
        re.M,
    )


@pytest.mark.parametrize(
    ("status", "words", "fields"),
    [
        (422, "the photo: cannot be read as an image", {"photo": b"text"}),
        (413, "60.2 megapixels", {"photo": png(Image.new("L", (7000, 8600)))}),
        (400, "photo: Field required", {"file": b""}),
        (400, "part: String should match pattern", {"part": "../circuit board"}),
        (404, "no part 'screw'", {"part": "screw"}),
        (400, "parts: Extra inputs", {"parts": "screw"}),
        (400, "map: Input should be 'png' or 'tiff'", {"map": "gif"}),
    ],
)
def test_bad_input_gets_a_line_of_json(status: int, words: str, fields: dict[str, Any], url: str) -> None:
    photo = {"photo": DEFECT.read_bytes()} if "file" not in fields else {}
    files = photo | {name: value for name, value in fields.items() if isinstance(value, bytes)}
    data = {name: value for name, value in fields.items() if isinstance(value, str)}
    found = requests.post(f"{url}/v1/inspect", files=files, data=data)
    message = found.json()["error"]["message"]
    assert (found.status_code, "\n" in message) == (status, False)
    assert words in message


@pytest.mark.parametrize("name", ["..", "../x", "%2e%2e%2fx", ".hidden", "a/b", "default", "x" * 61, "a\0b"])
def test_no_path_of_the_disk_is_reached(name: str, url: str, parts: Path) -> None:
    before = sorted(parts.parent.rglob("*"))
    request = requests.Request("PUT", f"{url}/v1/parts/", files={"photos": GOOD[0].read_bytes()}).prepare()
    request.url = f"{url}/v1/parts/{requests.utils.quote(name, safe='%')}"
    assert requests.Session().send(request).status_code in (400, 404)
    assert sorted(parts.parent.rglob("*")) == before


def test_limits(base: Any, tmp_path: Path) -> None:
    photo = DEFECT.read_bytes()
    with served(base, tmp_path, Limits(("one", "two"), body_bytes=len(photo), rate=5)) as url:
        assert requests.get(f"{url}/healthz").status_code == 200
        assert requests.get(f"{url}/metrics").status_code == 401
        key = {"Authorization": "Bearer two"}
        assert requests.post(f"{url}/v1/inspect", data=iter([photo, b"x"]), headers=key).status_code == 413
        found = [requests.post(f"{url}/v1/inspect", data=photo + b"x", headers=key) for _ in range(5)]
        assert [each.status_code for each in found] == [413] * 4 + [429]
        assert 0 < int(found[-1].headers["Retry-After"]) <= 60
        assert found[-1].json()["error"]["type"] == "rate_limit_error"
        assert requests.get(f"{url}/v1/parts", headers={"Authorization": "Bearer one"}).json() == {"parts": []}
    with served(base, tmp_path, Limits(waiting=1)) as url:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: inspect(url, photo), range(4)))
        assert {each.status_code for each in found} == {200, 503}
        assert all("Retry-After" in each.headers for each in found if each.status_code == 503)


def test_question_to_a_model_without_words_is_an_error(base: Any, tmp_path: Path) -> None:
    predictor = base.without_references()
    predictor.language_model = None
    with served(predictor, tmp_path) as url:
        assert inspect(url, DEFECT.read_bytes(), question="Why?").status_code == 501
        body = {"messages": [asked("Why?")], "stream": True}
        assert requests.post(f"{url}/v1/chat/completions", json=body).status_code == 501
        assert inspect(url, DEFECT.read_bytes()).json()["answer"] == ""


def test_generation_stops_when_the_client_has_left(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, closed = base.without_references(), threading.Event()

    def endless(*_: Any) -> Iterator[str]:
        try:
            while True:
                time.sleep(0.05)
                yield "again "
        finally:
            closed.set()

    monkeypatch.setattr(predictor, "stream", endless)
    with served(predictor, tmp_path) as url:
        body = {"messages": [asked("Why?")], "stream": True}
        with requests.post(f"{url}/v1/chat/completions", json=body, stream=True) as response:
            lines = response.iter_lines()  # kept: the connection is closed with it
            assert any(b"again" in line for line in lines)
            assert inspect(url, DEFECT.read_bytes()).status_code == 200  # meanwhile
            assert not closed.is_set()
        assert closed.wait(10)


@pytest.mark.parametrize("clients", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_each_answer_belongs_to_its_photo(clients: int, url: str, photo: Callable[..., Image.Image]) -> None:
    photos = [
        png(photo((100 + n, 90), (0.2 + 0.6 * (n % 4) / 3, 0.2 + 0.6 * (n // 4 % 4) / 3), n)) for n in range(clients)
    ]

    def ask(number: int) -> dict[str, Any]:
        return inspect(url, photos[number], part=("default", "circuit board")[number % 2]).json()

    def counted(name: str) -> int:
        return int(re.search(rf"^anomalygpt_{name}_total (\d+)$", requests.get(f"{url}/metrics").text, re.M)[1])

    before = counted("photos"), counted("batches")
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, range(clients)))
    assert counted("photos") - before[0] == clients
    assert counted("batches") - before[1] < clients
    assert [each["image_size"] for each in found] == [[100 + number, 90] for number in range(clients)]
    for number in range(0, clients, 5):
        alone = ask(number)
        assert found[number]["probability"] == pytest.approx(alone["probability"], abs=1e-4)
        assert [each["box"] for each in found[number]["regions"]] == [each["box"] for each in alone["regions"]]


@pytest.mark.slow
def test_schemathesis_finds_no_fault(url: str) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", "--no-color"]
    command += ["--checks", checks, "--max-examples", "10", "--seed", "0", "--phases", "examples,coverage,fuzzing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_port_in_use_ends_in_a_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", "compact", "--port", url.rpartition(":")[2]])
    assert ended.value.code == 2
    assert re.fullmatch(r"error: --host 127.0.0.1 --port \d+: can't serve there \(.*\)\n", capsys.readouterr().err)


@pytest.mark.slow
def test_sigterm_lets_what_runs_end(tmp_path: Path, compact_overrides: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "serve.py", "--config", "compact", "--port", port, "--parts", str(tmp_path / "parts")]
    command += ["--set", "llm.generation.max_new_tokens=40", *compact_overrides]
    with started(command, cwd=ROOT / "code", stdout=subprocess.PIPE, text=True) as process:
        while "Serving compact on" not in process.stdout.readline():
            assert process.poll() is None
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(inspect, url, DEFECT.read_bytes(), question="Is it fine?")
            wait_until(lambda: "anomalygpt_running 1" in requests.get(f"{url}/metrics").text, 30)
            process.send_signal(signal.SIGTERM)
            assert running.result().json()["answer"]
        assert process.wait(30) == 0
