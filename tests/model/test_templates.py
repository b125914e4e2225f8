"""Chats by a language model's own template: the same text as the template's, losses, gradients and stops."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from anomalygpt.config.load import load_config
from anomalygpt.config.settings import GenerationSettings
from anomalygpt.errors import UserError
from anomalygpt.inference.language_models import PromptedModel
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.build import build_model
from anomalygpt.model.chat import TemplateTokenizer, chat_prompt, training_batch
from anomalygpt.model.tokenizer import load_tokenizer
from tests.helpers import Said
from tests.inference.test_chat_models import TEMPLATES, write_chat_model
from tests.training.test_train import ok, train

FAMILIES = [family for family in TEMPLATES if family != "qwen3_moe"]
TARGETS = {"phi": ["qkv_proj", "o_proj"]}
QUESTIONS = [Said("human", "Is it fine?"), Said("human", "Where?")]
TURNS = [QUESTIONS[0], Said("assistant", "No."), QUESTIONS[1], Said("assistant", "Top left.")]


def write_family(folder, name):
    """A model with more rows than its tokeniser has tokens, as Qwen's: AutoTokenizer adds one to what was saved."""
    folder = write_chat_model(folder, name)
    llm = AutoModelForCausalLM.from_pretrained(folder)
    llm.resize_token_embeddings(264)
    llm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return SimpleNamespace(name=request.param, folder=write_family(folder, request.param))


def test_the_pieces_of_a_chat_are_the_templates_text(family):
    tokenizer = load_tokenizer(family.folder, TemplateTokenizer)
    layout, hf = tokenizer.layout, tokenizer._tokenizer
    messages = [{"role": "assistant" if turn.role == "assistant" else "user", "content": turn.text} for turn in TURNS]
    expected = hf.apply_chat_template(messages[:3], tokenize=False, add_generation_prompt=True)
    before = layout.before_image.removesuffix("<Img>")
    assert before + chat_prompt([("Is it fine?", "No.")], "Where?", layout) == expected
    [ids], [labels] = training_batch([TURNS], tokenizer, 512)
    text = before + hf.decode(ids)
    assert text.startswith(expected) and text.endswith("Top left." + layout.end)
    answers = ids[labels >= 0]
    assert hf.decode(answers) == "No.</s>Top left.</s>", "the stop is learned"


def test_a_model_of_the_family_learns_and_stops(family, tmp_path):
    settings = [
        "encoder={kind: timm, name: test_vit, image_size: 32}",
        f"llm.weights={family.folder}",
        f"llm.lora.targets={TARGETS.get(family.name, ['q_proj', 'k_proj', 'v_proj', 'o_proj'])}",
    ]
    config = load_config("train_backbone", settings)
    write_vit(tmp_path / "vit.safetensors")
    encoder = config.encoder.model_copy(update={"weights": str(tmp_path / "vit.safetensors")})
    model = build_model(config.model_copy(update={"encoder": encoder, "deltas": ()}), torch.device("cpu"))
    assert model.prompt_learner.base_prompts.shape == (9, 32) and model.llama_proj.weight.shape == (32, 64)
    model.requires_grad_(True)
    losses = model(torch.randn(2, 3, 32, 32), [TURNS, TURNS[:2]], max_length=64, class_names=["a", "b"])
    losses.total.backward()
    assert torch.isfinite(losses.total) and model.prompt_learner.base_prompts.grad.abs().sum() > 0
    features = model.encode(torch.randn(1, 3, 32, 32))
    maps = model.anomaly_map(features, ["a"])
    tokenizer, layout = model.tokenizer, model.tokenizer.layout
    [stop] = set(layout.stops)
    script = [*tokenizer.encode("No."), stop, *tokenizer.encode("rubbish")]
    answering = model.llama_model.get_output_embeddings()
    fed = iter(script * 2)

    def as_scripted(module, inputs, logits):
        return torch.nn.functional.one_hot(torch.tensor(next(fed)), logits.shape[-1]).expand_as(logits).to(logits)

    answering.register_forward_hook(as_scripted)
    greedy = GenerationSettings(max_new_tokens=8, temperature=0)
    assert model.answer(features, maps, [model.tokenizer.encode(chat_prompt([], "Is it?", layout))], greedy) == ["No."]
    fed = iter(script)
    image = SimpleNamespace(features=features, prompt_map=maps)
    assert [*PromptedModel(model, greedy, reads_findings=False).texts(image, "Is it?", [])][-1] == "No."


def write_vit(path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict(), path)


def test_a_folder_without_a_template_is_refused(tmp_path):
    folder = write_chat_model(tmp_path, "qwen2", template=False)
    with pytest.raises(UserError, match="cannot be read as a tokeniser: expected one with a chat template"):
        load_tokenizer(folder, TemplateTokenizer)


@pytest.mark.slow
def test_from_yaml_to_an_answer(tmp_path, photo):
    from tests.training.conftest import Experiment, draw_parts

    draw_parts(tmp_path / "data")
    write_vit(tmp_path / "vit.safetensors")
    write_family(tmp_path / "llm", "qwen2")
    settings = {
        "base": "train_backbone",
        "encoder": {"name": "test_vit", "weights": str(tmp_path / "vit.safetensors"), "taps": [1, 2, 3, 5]},
        "llm": {"weights": str(tmp_path / "llm")},
        "data": {"sources": [{"kind": "mvtec", "root": str(tmp_path / "data")}], "workers": 0},
        "training": {
            "steps": 3, "batch_size": 2, "micro_batch_size": 1, "precision": "fp32", "validation_pairs": 1,
            "output": str(tmp_path / "run"),
        },
    }  # fmt: skip
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings))
    ok(train(Experiment(path, tmp_path)))
    parts = "[image_decoder, prompt_learner, states, llama_proj, lora]"
    deltas = f"deltas=[{{path: {tmp_path / 'run' / 'model.safetensors'}, parts: {parts}}}]"
    predictor = Predictor.from_config(load_config(path, [deltas, "llm.generation.max_new_tokens=4"]), "cpu")
    found = next(predictor.predict_batch([photo(scratch=(0.5, 0.5))]))
    assert 0 <= found.image.probability <= 1
    predictor.set_references([photo(seed=seed) for seed in range(2)])
    assert predictor.inspect(photo(scratch=(0.5, 0.5))).score > predictor.inspect(photo(seed=5)).score
