"""Other language models: prompts of five families, a real server, and endpoints with every fault."""

import base64
import io
import json
import logging
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3MoeConfig,
)

from anomalygpt.config.load import load_config
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.datasets.findings import answer_text, findings_text
from anomalygpt.errors import UserError
from anomalygpt.inference import answer_check
from anomalygpt.inference.answer_check import Answer, check_answer, stream_checked
from anomalygpt.inference.language_models import API_KEY, ChatModel, EndpointModel, build_chat_model
from anomalygpt.model.build import missing_weights
from tests.fake_predictor import TOP_LEFT, result_with
from tests.processes import started, wait_until
from tests.shared_data import WEIGHTS, needs_weights

IMAGE = result_with(TOP_LEFT, "nut")  # defective at the top left
QUESTION = "Is it damaged?"
TRUE = "Yes, there is a defect at the top left."
HISTORY = [("What is it?", "It is a nut.")]

# How the five families put turns: two with a system role, two that refuse it, and one that leaves it out.
EACH = "{% for m in messages %}"
ASK = "{% endfor %}{% if add_generation_prompt %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEMPLATES = {
    "llama": EACH + "<s>{{ m.role }}\n\n{{ m.content }}</s>" + ASK + "<s>assistant\n\n{% endif %}",
    "qwen2": EACH + "<s>{{ m.role }}\n{{ m.content }}</s>\n" + ASK + "<s>assistant\n{% endif %}",
    "mistral": NO_SYSTEM + "<s>" + EACH + "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}" + ASK + "{% endif %}",
    "gemma": NO_SYSTEM + EACH + "<s>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</s>\n"
    "" + ASK + "<s>model\n{% endif %}",
    "phi": EACH + "{% if m.role in ('user', 'assistant') %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endif %}"
    "" + ASK + "<s>assistant\n{% endif %}",
}
TEMPLATES["qwen3_moe"] = TEMPLATES["qwen2"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "qwen2": lambda **sizes: Qwen2Config(**sizes, num_key_value_heads=2),
    "mistral": lambda **sizes: MistralConfig(**sizes, num_key_value_heads=2, sliding_window=64),
    "gemma": lambda **sizes: Gemma2Config(**sizes, num_key_value_heads=2, head_dim=8, sliding_window=64),
    "phi": Phi3Config,
    "qwen3_moe": lambda **sizes: Qwen3MoeConfig(
        **sizes, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, head_dim=8
    ),
}


def write_chat_model(folder: Path, family: str, template: bool = True) -> Path:
    """A random model of a family that reads bytes, with its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if template:
        fast.chat_template = TEMPLATES[family]
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    tokens = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    AutoModelForCausalLM.from_config(CONFIGS[family](**SIZES, **tokens)).save_pretrained(folder)
    return folder


def chat_model(folder: Path, **generation: Any) -> ChatModel:
    settings = {"max_new_tokens": 8, "temperature": 0, **generation}
    config = load_config(
        "compact", [f"llm.weights={folder}", "inference.findings=system", f"llm.generation={settings}"]
    )
    model = build_chat_model(config, torch.nn.Linear(1, 1))
    assert isinstance(model, ChatModel)
    return model


@pytest.fixture(scope="module", params=TEMPLATES)
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp(request.param), request.param)


def prompts_of(model: ChatModel) -> list[str]:
    """What the model is fed from now on, as text; one string for each run over new tokens."""
    fed: list[str] = []
    embed = model.llm.get_input_embeddings()
    embed.register_forward_pre_hook(lambda _, inputs: fed.append(model.tokenizer.decode(inputs[0][0])))
    return fed


@pytest.mark.parametrize("question", [QUESTION, "它坏了吗？"])
def test_every_family_reads_rules_findings_history_and_question_in_order(family_folder: Path, question: str) -> None:
    model = chat_model(family_folder)
    fed = prompts_of(model)
    list(model.texts(IMAGE, question, HISTORY))
    language = "en" if question == QUESTION else "zh"
    parts = [findings_text(IMAGE.findings, language), *HISTORY[0], question]
    places = [fed[0].index(part) for part in parts]
    assert places == sorted(places) and fed[0].count(parts[0]) == 1
    assert ("can't tell" in fed[0], "无法判断" in fed[0]) == (language == "en", language == "zh")
    assert "<Img>" not in fed[0] and "###" not in fed[0]


def test_answer_is_what_generate_writes_up_to_a_stop_token(family_folder: Path) -> None:
    model = chat_model(family_folder)
    fed = prompts_of(model)
    list(model.texts(IMAGE, QUESTION, HISTORY))
    ids = torch.tensor([model.tokenizer.encode(fed[0], add_special_tokens=False)])
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    new = model.llm.generate(ids, **greedy)[0, ids.shape[1] :].tolist()
    loaded = AutoModelForCausalLM.from_pretrained(family_folder)
    loaded.generation_config.eos_token_id = [1, new[5]]
    stopping = ChatModel(loaded.eval(), model.tokenizer, model.settings)
    texts = list(stopping.texts(IMAGE, QUESTION, HISTORY))
    assert texts[-1] == model.tokenizer.decode(new[: new.index(new[5])], skip_special_tokens=True).strip()
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))


def test_opening_begins_the_assistants_turn(family_folder: Path) -> None:
    model = chat_model(family_folder)
    fed = prompts_of(model)
    texts = list(model.texts(IMAGE, QUESTION, HISTORY, "There is a defect"))
    assert all(text.startswith("There is a defect") for text in texts)
    assert fed[0].endswith("There is a defect") and fed[0].count("There is a defect") == 1


def test_follow_up_computes_only_what_is_new_and_another_photo_shares_the_rules(tmp_path: Path) -> None:
    model = chat_model(write_chat_model(tmp_path, "qwen2"))
    fed = prompts_of(model)
    *_, answer = model.texts(IMAGE, QUESTION, ())
    begun = len(fed)
    list(model.texts(IMAGE, "And how large?", [(QUESTION, answer)]))
    assert len(fed[begun]) < 60 < len(fed[0])
    assert "And how large?" in fed[begun] and QUESTION not in fed[begun]
    begun, other = len(fed), replace(IMAGE, references=4)
    list(model.texts(other, QUESTION, ()))
    assert "4 reference photos" in fed[begun] and "can't tell" not in fed[begun]


def test_a_copy_that_answers_meanwhile_shares_no_keys_and_values(tmp_path: Path) -> None:
    model = chat_model(write_chat_model(tmp_path, "qwen2"))
    fed = prompts_of(model)
    list(model.texts(IMAGE, QUESTION, ()))
    first, second = (copy(model).texts(image, QUESTION, ()) for image in (IMAGE, replace(IMAGE, references=4)))
    next(first)
    begun = len(fed)
    next(second)  # as the server asks for one after the other
    assert "4 reference photos" in fed[begun] and "can't tell" in fed[begun]


def test_folder_without_a_chat_template_or_with_bad_weights_is_named(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "plain", "llama", template=False)
    with pytest.raises(UserError, match=r"plain: no chat template there"):
        chat_model(folder)
    with pytest.raises(UserError, match="nowhere"):
        chat_model(tmp_path / "nowhere")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layers.1" not in name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\."):
        chat_model(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read as a Hugging Face language model"):
        chat_model(folder)


@pytest.mark.weights
def test_predictor_with_another_model_needs_no_delta_of_the_language_model(
    tmp_path: Path, compact_overrides: list[str], photo: Callable[..., Image.Image]
) -> None:
    from anomalygpt.inference.predictor import Predictor

    folder = write_chat_model(tmp_path, "gemma")
    config = load_config("compact", [*compact_overrides, f"llm.weights={folder}", "inference.findings=system"])
    predictor = Predictor.from_config(config, "cpu")
    assert not predictor.model.has_llm
    found = next(predictor.predict_batch([photo(scratch=(0.3, 0.3))], QUESTION))
    assert found.answer and check_answer(found.answer, QUESTION, found.image.findings) == ()
    assert [*predictor.language_model.texts(found.image, QUESTION, ())][-1] != found.answer, (
        "a random model writes nonsense"
    )


def test_weights_that_another_language_model_does_not_need_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALYGPT_HOME", str(tmp_path))
    paper = load_config("imagebind_vicuna7b")
    pandagpt, delta = (tmp_path / each.path for each in paper.deltas)
    encoder, vicuna = tmp_path / paper.encoder.weights, tmp_path / str(paper.llm and paper.llm.weights)
    assert set(missing_weights(paper)) == {encoder, pandagpt, delta, vicuna}
    system = load_config("imagebind_vicuna7b", ["inference.findings=system"])
    assert set(missing_weights(system)) == {encoder, delta, vicuna}
    server = load_config("imagebind_vicuna7b", ["llm.endpoint=http://localhost:1/v1", "llm.model=any"])
    assert set(missing_weights(server)) == {encoder, delta}


# -- endpoints --------------------------------------------------------------------------------------------------------


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def spoken(text: str) -> list[bytes | None]:
    return [*(chunk(f"{word} ") for word in text.split()), b"data: [DONE]\n\n"]


class Endpoint(ThreadingHTTPServer):
    """Answers each request with the next of its replies: a status, and the parts of a body; None never comes."""

    daemon_threads = True

    def __init__(self, *replies: tuple[int, list[bytes | None]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.requests, self.keys = list(replies), list[dict[str, Any]](), list[str]()
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.keys.append(self.headers["Authorization"])
        status, parts = self.server.replies.pop(0)
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if status == 200 else "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            if part is None:
                self.server.released.wait(30)
            else:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if b"cut" not in parts:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Endpoint]]:
    monkeypatch.setenv(API_KEY, "secret-key")
    answer_check._warn_once.cache_clear()
    made: list[Endpoint] = []

    def start(*replies: tuple[int, list[bytes | None]]) -> Endpoint:
        made.append(Endpoint(*replies))
        return made[-1]

    yield start
    for server in made:
        server.released.set()
        server.shutdown()
        server.server_close()


def endpoint_model(url: str, **changes: Any) -> EndpointModel:
    values = {"endpoint": url, "model": "small", "timeout": 1, "generation": {"max_new_tokens": 50}, **changes}
    config = ExperimentConfig.model_validate({"llm": values})
    model = build_chat_model(config, torch.nn.Linear(1, 1))
    assert isinstance(model, EndpointModel)
    return model


def asked(model: Any, question: str = QUESTION, image: Any = IMAGE) -> Answer:
    answers: list[Answer] = []

    def run() -> Iterator[str]:
        answers.append((yield from stream_checked(model, image, question)))

    assert "".join(run()) == answers[0].text
    return answers[0]


def test_endpoint_is_sent_rules_findings_and_the_key_and_its_true_answer_is_shown(endpoint) -> None:
    server = endpoint((200, spoken(TRUE)))
    answer = asked(endpoint_model(server.url))
    assert (answer.text, answer.source) == (TRUE, "model")
    [request] = server.requests
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert findings_text(IMAGE.findings) in request["messages"][0]["content"]
    assert (request["model"], request["stream"], request["max_tokens"]) == ("small", True, 50)
    assert server.keys == ["Bearer secret-key"]


def test_thoughts_are_not_part_of_the_answer(endpoint) -> None:
    server = endpoint((200, spoken(f"<think> No, it is fine. </think> {TRUE}")))
    answer = asked(endpoint_model(server.url))
    assert (answer.text, answer.source) == (TRUE, "model")


def test_false_answer_of_an_endpoint_is_asked_for_again_with_an_opening(endpoint) -> None:
    server = endpoint((200, spoken("No, it is fine.")), (200, spoken("There is a defect at the top left.")))
    answer = asked(endpoint_model(server.url))
    assert (answer.text, answer.source) == ("There is a defect at the top left.", "corrected")
    last = server.requests[1]["messages"][-1]["content"]
    assert last.startswith(QUESTION) and last.endswith("There is a defect at the top left")


def test_request_that_is_refused_is_sent_in_its_plainest_form(endpoint) -> None:
    server = endpoint((400, [b'{"error": {"message": "no temperature"}}']), (200, spoken(TRUE)))
    assert asked(endpoint_model(server.url)).source == "model"
    plain = server.requests[1]
    assert plain.keys() == {"model", "stream", "messages"}
    [message] = plain["messages"]
    assert message["role"] == "user" and findings_text(IMAGE.findings) in message["content"]


@pytest.mark.parametrize("status", [200, 400])
def test_photo_and_overlay_are_attached_where_that_is_set(endpoint, status: int) -> None:
    server = endpoint(*([(400, [b"{}"])] if status == 400 else []), (200, spoken(TRUE)))
    photo = Image.new("RGB", (2000, 1000), "white")
    image = replace(result_with(TOP_LEFT, "nut", photo.size), photo=photo)
    assert asked(endpoint_model(server.url, attach_images=True), image=image).source == "model"
    content = server.requests[-1]["messages"][0 if status == 400 else 1]["content"]
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))).size for url in pictures]
    assert sizes == [(1024, 512), (1024, 512)] and pictures[0] != pictures[1]
    assert any(QUESTION in part.get("text", "") for part in content)


FAULTS: dict[str, tuple[list[tuple[int, list[bytes | None]]], str]] = {
    "bad key": ([(401, [b'{"error": {"message": "wrong key secret-key"}}'])], f"environment variable {API_KEY}"),
    "unknown model": ([(404, [b'{"error": {"message": "no such model"}}'])], "small is a model there"),
    "server error": ([(500, [b"secret-key broke\n\nbadly"])], "InternalServerError"),
    "refused twice": ([(400, [b'{"error": {"message": "no images"}}'])] * 2, "no images"),
    "hang": ([(200, [None])], "APITimeoutError"),
    "hang in the stream": ([(200, [chunk("Yes, there"), None])], "APITimeoutError"),
    "web page": ([(200, [b"<html>Sign in</html>"])], "an empty reply"),
    "thoughts alone": ([(200, spoken("<think> Is it a defect?"))], "max_new_tokens"),
    "broken JSON": ([(200, [b"data: {broken\n\n"])], "JSONDecodeError"),
    "other JSON": ([(200, [b'data: {"text": 1}\n\n'])], "Error"),
    "list": ([(200, [b"data: [1, 2]\n\n"])], "Error"),
    "error in the stream": ([(200, [b'data: {"error": {"message": "out of memory"}}\n\n'])], "out of memory"),
    "cut in a sentence": ([(200, [chunk("Yes, there is"), b"cut"])], "APIConnectionError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_endpoint_is_one_warning_and_the_findings_sentence(endpoint, fault: str, caplog) -> None:
    replies, words = FAULTS[fault]
    server = endpoint(*replies, *replies)
    model = endpoint_model(server.url)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        answer = asked(model)
        assert (answer.text, answer.source) == (answer_text("describe", IMAGE.findings, "en"), "findings")
    [record] = [each for each in caplog.records if each.name.startswith("anomalygpt")]
    line = record.getMessage()
    assert words in line and server.url in line and "\n" not in line
    assert "secret-key" not in caplog.text


def test_refused_connection_and_unknown_host(endpoint, caplog) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"):
        assert asked(endpoint_model(url), "它坏了吗？").text == answer_text("describe", IMAGE.findings, "zh")
        assert f"llm.endpoint {url}: APIConnectionError" in caplog.text
    assert "refused" in caplog.text


def test_stream_that_is_cut_after_a_sentence_keeps_it(endpoint, caplog) -> None:
    server = endpoint((200, [chunk(f"{TRUE} "), chunk("It"), b"cut"]))
    answer = asked(endpoint_model(server.url))
    assert (answer.text, answer.source) == (TRUE, "corrected")
    assert "APIConnectionError" in caplog.text


def test_answer_that_is_not_read_to_its_end_closes_the_connection(endpoint) -> None:
    model = endpoint_model(endpoint((200, [chunk("Yes"), None])).url, timeout=20)
    texts = model.texts(IMAGE, QUESTION, ())
    assert next(texts) == "Yes"
    begun = time.monotonic()
    texts.close()
    assert time.monotonic() - begun < 10


@pytest.mark.weights
def test_command_goes_on_without_its_endpoint(
    tmp_path: Path, compact_overrides: list[str], photo: Callable[..., Image.Image], capsys: Any
) -> None:
    from anomalygpt.predict import main

    photo(scratch=(0.3, 0.3)).save(tmp_path / "part.png")
    settings = [*compact_overrides, "llm.endpoint=http://127.0.0.1:9/v1", "llm.model=any"]
    arguments = [str(tmp_path / "part.png"), "--config", "compact", "--device", "cpu", "--json", "--set", *settings]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer_source"] == "findings" and result["answer"]


# -- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_endpoint() -> Iterator[str]:
    """``transformers serve`` with SmolLM2."""
    needs_weights("smollm2_135m_instruct")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(WEIGHTS / "smollm2_135m_instruct")]
    options = ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
        except OSError:
            return False

    with started([*command, *options]):
        wait_until(is_up, 120)
        yield f"{url}/v1"


@pytest.mark.weights
@pytest.mark.slow
def test_real_server_answers_as_the_same_weights_do_here(real_endpoint: str) -> None:
    folder = WEIGHTS / "smollm2_135m_instruct"
    generation = {"max_new_tokens": 24, "temperature": 1, "top_p": 0.01}
    server = endpoint_model(real_endpoint, model=str(folder), timeout=100, generation=generation)
    here = chat_model(folder, **generation)
    for question in (QUESTION, "它坏了吗？"):
        *_, text = server.texts(IMAGE, question, HISTORY)
        assert text == list(here.texts(IMAGE, question, HISTORY))[-1].rstrip("\ufffd")
        answer = asked(server, question)
        assert answer.text and check_answer(answer.text, question, IMAGE.findings) == ()


@pytest.mark.weights
@pytest.mark.slow
def test_real_server_without_the_named_model(real_endpoint: str, caplog) -> None:
    answer_check._warn_once.cache_clear()
    assert asked(endpoint_model(real_endpoint, model="another", timeout=100)).source == "findings"
    assert "BadRequestError" in caplog.text
