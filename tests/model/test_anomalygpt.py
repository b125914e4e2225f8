"""The complete model with small random parts: which loss reaches which part, and what the language model is given."""

import copy

import pytest
import torch
from torch import Tensor

from anomalygpt.config.settings import GenerationSettings
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.chat import Layout, chat_prompt
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.image_decoder import anomaly_map
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.model.prompt_ensemble import PromptEnsemble
from tests.helpers import Letters, Said, tiny_model

TALKS = [
    [Said("human", "Is it good?"), Said("assistant", "No.")],
    [Said("human", "Any defect at all?"), Said("assistant", "Yes, at the top.")],
]


@pytest.fixture(scope="module")
def model() -> AnomalyGPT:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.llama_model.parameters():
            parameter.mul_(3)  # so that what goes in is seen in what comes out
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def target() -> Tensor:
    target = torch.zeros(2, 1, 224, 224)
    target[1, :, :60, :60] = 1
    return target


def losses(model: AnomalyGPT, images: Tensor, **more: object):
    model.zero_grad(set_to_none=True)
    return model(images, TALKS, max_length=64, class_names=["screw", "pill"], **more)


def test_instruction_data_has_the_answers_loss_alone_and_the_class_object(model, images) -> None:
    instruction = model(images, TALKS, max_length=64)
    named = model(images, TALKS, max_length=64, class_names=["object", "object"])
    assert float(instruction.focal) == float(instruction.dice) == 0
    assert torch.equal(instruction.total, instruction.answer)
    assert torch.equal(instruction.answer, named.answer)


def test_language_loss_trains_the_image_decoder_too_and_no_frozen_part(model, images, target) -> None:
    found = losses(model, images, target=target)
    assert torch.allclose(found.total, found.answer + found.focal + found.dice)
    assert min(found.focal, found.dice) > 0
    found.answer.backward(retain_graph=True)
    trained = [*(layer.weight for layer in model.image_decoder.fc), model.prompt_learner.base_prompts]
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in trained)
    found.total.backward()
    frozen = [*model.encoder.parameters(), *model.llama_model.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_given_maps_and_embeddings_train_the_text_alone_and_use_no_photo(model, images) -> None:
    with torch.no_grad():
        features = model.encode(images)
        maps = model.anomaly_map(features, ["screw", "pill"])
    model.zero_grad(set_to_none=True)
    found = model(ImageFeatures((), features.embedding), TALKS, max_length=64, maps=maps)
    assert torch.allclose(found.answer, losses(model, images).answer)
    assert torch.equal(found.total, found.answer)
    assert float(found.focal) == float(found.dice) == 0
    found.total.backward()
    assert float(model.llama_proj.weight.grad.abs().max()) > 0
    assert float(model.prompt_learner.base_prompts.grad.abs().max()) > 0
    assert all(layer.weight.grad is None for layer in model.image_decoder.fc)


def test_one_shot_map_reaches_the_prompt_learner_and_not_the_pixel_losses(model, images, target) -> None:
    references = images.flip(-1)[:1].unsqueeze(1)  # one group, one view
    text = losses(model, images, target=target)
    one_shot = losses(model, images, target=target, references=references)
    assert torch.equal(one_shot.focal, text.focal)
    assert torch.equal(one_shot.dice, text.dice)
    assert float(one_shot.answer) != float(text.answer)
    one_shot.answer.backward()  # leaves the image decoder alone
    assert all(layer.weight.grad is None for layer in model.image_decoder.fc)
    assert model.prompt_learner.meta_net[0].weight.grad is not None


def test_each_group_of_images_has_its_own_reference_and_all_views_count(model, images) -> None:
    """Two groups of one image, each its own reference (as second view): both maps are empty; swapped, they are not."""
    features = model.encode(images)
    views = torch.stack([torch.zeros_like(images), images], dim=1)
    own = model._one_shot_maps(features, views)
    swapped = model._one_shot_maps(features, views.flip(0))
    assert float(own.abs().max()) < 1e-4
    assert float(swapped.amax(dim=(1, 2, 3)).min()) > 1e-3


def test_prompt_learner_sees_the_one_shot_map_in_units_of_the_threshold(model, images) -> None:
    """A threshold of one half is the raw map; a hundredth of the largest distance saturates it, as ones would."""
    references = images.flip(-1)[:1].unsqueeze(1)
    seen: list[torch.Tensor] = []
    model.prompt_learner.register_forward_pre_hook(lambda _, maps: seen.append(maps[0]))
    for threshold in (None, 0.5, 1e-4):
        model(images, TALKS, max_length=64, references=references, one_shot_threshold=threshold)
    raw, half, tiny = seen
    assert torch.allclose(raw.clamp(0, 1), half)
    assert torch.equal(tiny.max(), torch.ones(()))
    assert not torch.allclose(raw, tiny)


def test_references_replace_the_text_map(model, images) -> None:
    features = model.encode(images)
    memory = MemoryBank(features[[1]])
    with torch.no_grad():
        text = model.anomaly_map(features, ["screw", "screw"])
        few = model.anomaly_map(features, ["screw", "screw"], memory)
        assert torch.equal(text, anomaly_map(model.text_probabilities(features, ["screw", "screw"])))
    assert torch.equal(few, memory.anomaly_map(features, 224))
    assert float(few[1].abs().max()) < 1e-4


def test_language_model_is_given_bos_image_and_eighteen_prompts_in_order(model, images) -> None:
    features = model.encode(images)
    maps = torch.rand(2, 1, 224, 224)
    embed = model.llama_model.get_input_embeddings()
    with torch.no_grad():
        given = model.prompt_embeds(features, maps)
        before = embed(torch.tensor([1, *Letters().encode(Layout.before_image)]))
        after = embed(torch.tensor(Letters().encode(Layout.after_image)))
        assert torch.equal(given[1, : len(before)], before)
        assert torch.allclose(given[1, len(before)], model.llama_proj(features.embedding[1]), atol=1e-6)
        assert torch.equal(given[1, len(before) + 1 : -18], after)
        assert torch.allclose(given[:, -18:], model.prompt_learner(maps), atol=1e-6)


def test_answers_in_a_batch_are_those_given_one_by_one(model, images) -> None:
    """Texts of three lengths are padded on the left, and no answer changes by that."""
    torch.manual_seed(3)
    features = model.encode(torch.cat([images, images[:1].flip(-1)]))
    maps = torch.rand(3, 1, 224, 224)
    prompts = [chat_prompt([], "Is it?"), chat_prompt([], "A much longer question?"), chat_prompt([("a", "b")], "c")]
    texts = [model.tokenizer.encode(prompt) for prompt in prompts]
    settings = GenerationSettings(max_new_tokens=10, temperature=0)
    together = model.answer(features, maps, texts, settings)
    assert model.answer(features, maps, texts, settings, whole=True) == together
    apart = [model.answer(features[[i]], maps[[i]], [texts[i]], settings)[0] for i in range(3)]
    assert together == apart
    assert len(set(apart)) > 1


def test_padding_on_the_right_does_not_change_the_loss(model, images) -> None:
    """The batch's loss is the mean over all its answer tokens, each conversation seen as if it were alone."""
    whole = model(images, TALKS, max_length=64)
    alone = [model(images[[i]], TALKS[i : i + 1], max_length=64) for i in range(2)]
    tokens = [len(TALKS[i][1].text) + 4 for i in range(2)]
    expected = sum(float(loss.answer) * count for loss, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert float(whole.answer) == pytest.approx(expected, rel=1e-4)


def test_conversation_that_is_cut_before_its_answer_costs_nothing(model, images) -> None:
    assert float(model(images, TALKS, max_length=5).answer) == 0


def test_model_may_only_draw(model, images) -> None:
    silent = AnomalyGPT(model.encoder, model.states, model.image_decoder)
    assert not silent.has_llm
    features = silent.encode(images)
    assert silent.anomaly_map(features, ["screw", "screw"]).shape == (2, 1, 224, 224)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encoder_and_language_model_beside_float32_parts(model, images, dtype) -> None:
    """What a GPU run has: frozen parts in half precision, trained parts in float32."""
    half = copy.deepcopy(model)
    half.encoder.to(dtype)
    half.llama_model.to(dtype)
    half.states = PromptEnsemble(half.encoder)
    features = half.encode(images)
    maps = half.anomaly_map(features, ["screw", "pill"])
    assert features.taps[0].dtype == dtype
    assert maps.dtype == torch.float32
    assert half.prompt_embeds(features, maps).dtype == dtype
    found = half(images, TALKS, max_length=64, target=torch.zeros(2, 1, 224, 224))
    found.total.backward()
    assert found.total.isfinite()
    assert half.image_decoder.fc[0].weight.grad.dtype == torch.float32
    assert len(half.answer(features, maps, [[5], [6, 7]], GenerationSettings(max_new_tokens=2))) == 2


QUESTION = chat_prompt([], "Is it good?")
ANSWERS = ["Yes.", "No, at the top left.", "A"]


@pytest.fixture
def seen(model, images):
    features = model.encode(images)
    return features[[0]], model.anomaly_map(features, ["bottle", "bottle"])[:1]


def one_by_one(model, features, maps, answer):
    """The mean log-likelihood from a forward pass for every prefix of the answer."""
    embed = model.llama_model.get_input_embeddings()
    ids = model.tokenizer.encode(answer)
    found = []
    for number, token in enumerate(ids):
        text = torch.tensor([model.tokenizer.encode(QUESTION) + ids[:number]])
        embeds = torch.cat([model.prompt_embeds(features, maps), embed(text)], dim=1)
        found.append(model.llama_model(inputs_embeds=embeds).logits[0, -1].log_softmax(-1)[token])
    return torch.stack(found).mean()


@torch.no_grad()
def test_likelihood_of_a_batch_of_answers_equals_one_token_after_the_other(model, seen):
    found = model.answer_likelihoods(*seen, model.tokenizer.encode(QUESTION), ANSWERS)
    expected = torch.stack([one_by_one(model, *seen, answer) for answer in ANSWERS])
    ids = model.tokenizer.encode(QUESTION)
    alone = torch.cat([model.answer_likelihoods(*seen, ids, [answer]) for answer in ANSWERS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
