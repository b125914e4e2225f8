"""The text ensemble: 24 sentences per class, encoded once (specification 3)."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.prompt_ensemble import (
    ABNORMAL_STATES,
    NORMAL_STATES,
    LearnedTextFeatures,
    PromptEnsemble,
    sentences,
)
from tests.helpers import TINY


@pytest.fixture(scope="module")
def encoder() -> ImageBind:
    torch.manual_seed(0)
    return ImageBind(TINY).eval()


def test_fourteen_normal_and_ten_abnormal_sentences() -> None:
    normal, abnormal = sentences("bottle", NORMAL_STATES), sentences("bottle", ABNORMAL_STATES)
    assert (len(normal), len(set(normal)), len(abnormal), len(set(abnormal))) == (14, 14, 10, 10)
    assert {"a photo of a flawless bottle.", "a photo of the bottle without damage."} <= set(normal)
    assert {"a photo of the broken bottle.", "a photo of a bottle with flaw."} <= set(abnormal)
    assert "a photo of the unblemished metal nut." in sentences("metal_nut", NORMAL_STATES), "_ reads as a space"


@pytest.mark.parametrize("name", ["left-hand gear", "{}", "{0} 100 %", "", "瓶子", "a" * 500])
def test_any_class_name_is_legal(encoder: ImageBind, name: str) -> None:
    states = PromptEnsemble(encoder)([name])
    assert torch.allclose(states.norm(dim=-1), torch.ones(1, 2), atol=1e-5)


def test_states_are_the_mean_of_the_sentences_embeddings(encoder: ImageBind) -> None:
    with torch.no_grad():
        normal = F.normalize(encoder.encode_text(sentences("pill", NORMAL_STATES)).mean(dim=0), dim=0)
        abnormal = F.normalize(encoder.encode_text(sentences("pill", ABNORMAL_STATES)).mean(dim=0), dim=0)
    assert torch.allclose(PromptEnsemble(encoder)(["pill"])[0], torch.stack([normal, abnormal]), atol=1e-5)


def test_each_class_is_encoded_once(encoder: ImageBind) -> None:
    ensemble, counts = PromptEnsemble(encoder), []
    hook = encoder.modality_trunks["text"].register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    first = ensemble(["screw", "pill", "screw"])
    again = ensemble(["pill", "screw"])
    hook.remove()
    assert counts == [24, 24]
    assert torch.equal(first[[1, 0]], again)
    assert torch.equal(first[0], first[2])


def test_states_that_inference_cached_serve_training(encoder: ImageBind) -> None:
    ensemble = PromptEnsemble(encoder)
    with torch.inference_mode():
        ensemble(["screw"])
    weight = torch.ones(TINY.joint_width, requires_grad=True)
    (ensemble(["screw"]) * weight).sum().backward()
    assert weight.grad is not None


def test_learned_states_are_unit_vectors_for_every_class() -> None:
    learned = LearnedTextFeatures(8)
    states = learned(["screw", "pill", "object"])
    assert states.shape == (3, 2, 8)
    assert torch.allclose(states.norm(dim=-1), torch.ones(3, 2), atol=1e-6)
    assert torch.equal(states[0], states[2])
    states[0, 0].sum().backward()
    assert learned.states.grad is not None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_text_tower_is_on_the_device_only_while_a_class_is_encoded(device: str) -> None:
    torch.manual_seed(0)
    encoder = ImageBind(TINY).eval().to(device)
    expected, seen = PromptEnsemble(encoder)(["screw"]), []
    ensemble = PromptEnsemble(encoder, offload=True)
    where = lambda: {parameter.device.type for parameter in encoder.text_tower.parameters()}  # noqa: E731
    assert where() == {"cpu"}
    hook = encoder.modality_trunks["text"].register_forward_hook(lambda *_: seen.extend(where()))
    assert torch.allclose(ensemble(["screw"]), expected, atol=1e-5) and where() == {"cpu"}
    ensemble(["screw"])
    hook.remove()
    assert seen == [device]
    tower = {id(parameter) for parameter in encoder.text_tower.parameters()}
    assert tower == {id(value) for name, value in encoder.named_parameters() if ".text." in name}
