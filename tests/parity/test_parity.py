"""The released code's numbers, on weights that anyone can make again (tolerances: relative norm of the difference)."""

import json
from dataclasses import dataclass

import pytest
import torch

from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import chat_prompt
from anomalygpt.model.few_shot import PatchMemory
from anomalygpt.model.image_decoder import anomaly_map
from anomalygpt.model.imagebind.tokenizer import tokenize
from anomalygpt.model.tokenizer import SentencePieceTokenizer
from tests.parity.thin import HERE, thin_expected, thin_inputs, thin_model
from tests.shared_data import shared

FORWARD = 2e-5
LOSS = 1e-6
GRADIENT = 1e-3

QUESTIONS = (
    "This is a photo of a bottle for anomaly detection. Is there any anomaly in the image?",
    "Is there any defect?",
)
CLASSES = ("bottle", "object")


@dataclass(frozen=True)
class Said:
    role: str
    text: str


def dialogue(class_name: str, answer: str) -> tuple[Said, Said]:
    question = f"This is a photo of a {class_name} for anomaly detection. Is there any anomaly in the image?"
    return Said("human", question), Said("assistant", answer)


CONVERSATIONS = (
    dialogue("bottle", "No, there is no anomaly in the image."),
    dialogue("metal nut", "Yes, there is an anomaly in the image, at the top left of the image."),
)


def difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    assert ours.shape == expected.shape
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


class TableTokenizer:
    """The ids of ``llama_tokens.json`` alone, for clones without LLaMA's tokeniser file."""

    bos_id, eos_id = 1, 2

    def __init__(self) -> None:
        self.table = json.loads((HERE / "llama_tokens.json").read_text())["texts"]

    def encode(self, text: str) -> list[int]:
        return self.table[text]

    def decode(self, ids: list[int]) -> str:
        raise NotImplementedError


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return thin_expected()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return thin_inputs()


@pytest.fixture(scope="module")
def model() -> AnomalyGPT:
    try:
        tokenizer = SentencePieceTokenizer(shared("parity/llama_tokenizer.model"))
    except pytest.skip.Exception:
        tokenizer = TableTokenizer()
    return thin_model(tokenizer)


@pytest.fixture(scope="module")
def features(model, inputs):
    return model.encode(inputs["images"])


def needs_llama_tokens(model: AnomalyGPT) -> None:
    if isinstance(model.tokenizer, TableTokenizer):
        shared("parity/llama_tokenizer.model")  # skips, saying what is absent


def test_vision_embedding_and_taps(features, expected):
    assert difference(features.embedding, expected["vision_embed"]) < FORWARD
    for i, tap in enumerate(features.taps):
        # The expected taps have CLS in front, and every 16th token: those from the second on are patches 15, 31, ...
        assert difference(tap[:, 15::16, ::40], expected[f"layer_{i}_tokens"][:, 1:]) < FORWARD


def test_text_tokens_and_embedding(model, expected):
    texts = [
        "a photo of a flawless bottle.",
        "a photo of the metal nut with damage.",
        "A PHOTO of a pcb4 without défaut!",
    ]
    assert torch.equal(tokenize(texts), expected["text_tokens"].long())
    with torch.no_grad():
        assert difference(model.encoder.encode_text(texts), expected["text_embed"]) < FORWARD


def test_prompt_ensemble(model, expected):
    assert difference(model.states(["bottle", "metal_nut"]), expected["prompt_ensemble"]) < FORWARD


@pytest.mark.parametrize("query", [0, 1])
def test_text_map(model, features, expected, query):
    with torch.no_grad():
        ours = model.anomaly_map(features[[query]], [CLASSES[query]])
    assert difference(ours, expected[f"map_q{query}_zero"]) < FORWARD


@pytest.mark.parametrize("query", [0, 1])
def test_few_shot_map(model, features, expected, query):
    memory = PatchMemory(features[[2]])
    assert (
        difference(model.anomaly_map(features[[query]], [CLASSES[query]], memory), expected[f"map_q{query}_few"])
        < FORWARD
    )


def test_prompts(model, expected):
    with torch.no_grad():
        assert difference(model.prompt_learner(expected["map_q0_zero"])[:, :, ::64], expected["prompts"]) < FORWARD


@pytest.mark.parametrize("kind", ["zero", "few"])
@pytest.mark.parametrize("query", [0, 1])
def test_language_model_input_and_logits(model, features, expected, query, kind):
    needs_llama_tokens(model)
    memory = PatchMemory(features[[2]]) if kind == "few" else None
    with torch.no_grad():
        one = features[[query]]
        before = model.prompt_embeds(one, model.anomaly_map(one, [CLASSES[query]], memory))
        ids = model.tokenizer.encode(chat_prompt([], QUESTIONS[query]))
        embeds, attention = model._left_padded(before, [ids])
        logits = model.llama_model(inputs_embeds=embeds, attention_mask=attention).logits
    assert difference(embeds[:, :, ::64], expected[f"embeds_q{query}_{kind}"]) < FORWARD
    ours = logits[:, -1, ::50]
    assert difference(ours, expected[f"logits_q{query}_{kind}"].reshape(ours.shape)) < FORWARD


def test_training_loss_and_gradients(model, inputs, expected):
    needs_llama_tokens(model)
    model.zero_grad(set_to_none=True)
    target = (inputs["masks"] > 0.3).float()
    losses = model(
        inputs["images"][:2],
        CONVERSATIONS,
        max_length=1024,
        class_names=["bottle", "metal_nut"],
        target=target,
    )
    losses.total.backward()
    assert abs(float(losses.total.detach()) / float(expected["train_loss"]) - 1) < LOSS
    assert float(losses.token_accuracy) == float(expected["train_token_acc"])
    for i, layer in enumerate(model.image_decoder.fc):
        assert difference(layer.weight.grad[::64, ::64], expected[f"grad_image_decoder_{i}"]) < GRADIENT
    learner = model.prompt_learner
    assert difference(learner.meta_net[0].weight.grad, expected["grad_prompt_learner_first"]) < GRADIENT
    assert difference(learner.base_prompts.grad[:, ::64], expected["grad_base_prompts"]) < GRADIENT


def test_instruction_loss(model, inputs, expected):
    needs_llama_tokens(model)
    with torch.no_grad():
        losses = model(inputs["images"][:2], CONVERSATIONS, max_length=1024)
    assert abs(float(losses.total) / float(expected["sft_loss"]) - 1) < LOSS


def test_llama_tokens():
    tokenizer = SentencePieceTokenizer(shared("parity/llama_tokenizer.model"))
    table = json.loads((HERE / "llama_tokens.json").read_text())
    assert (tokenizer.bos_id, tokenizer.eos_id) == (table["special"]["bos"], table["special"]["eos"])
    for text, ids in table["texts"].items():
        if "<s>" not in text:  # special tokens in a user's text stay text
            assert tokenizer.encode(text) == ids, text
    for ids, text in table["decode"].items():
        if 1 not in json.loads(ids):
            assert tokenizer.decode(json.loads(ids)) == text, ids


def test_anomaly_map_averages_the_layers_abnormal_channel():
    layers = torch.tensor([0.2, 0.6]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 3, 3)
    assert torch.allclose(anomaly_map(layers), torch.full((1, 1, 3, 3), 0.4))
