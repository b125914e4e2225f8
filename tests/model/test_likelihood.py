"""The likelihood of answers against one token after the other, and what it must not depend on."""

import pytest
import torch

from anomalygpt.model.chat import chat_prompt
from tests.model.test_anomalygpt import images, model  # noqa: F401 (fixtures)

QUESTION = chat_prompt([], "Is it good?")
ANSWERS = ["Yes.", "No, at the top left.", "A"]


@pytest.fixture
def seen(model, images):  # noqa: F811
    features = model.encode(images)
    return features[[0]], model.anomaly_map(features, ["bottle", "bottle"])[:1]


def one_by_one(model, features, maps, answer):  # noqa: F811
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
def test_one_batch_equals_one_token_after_the_other(model, seen):  # noqa: F811
    found = model.answer_likelihoods(*seen, QUESTION, ANSWERS)
    expected = torch.stack([one_by_one(model, *seen, answer) for answer in ANSWERS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_answers_likelihood_does_not_depend_on_the_others(model, seen):  # noqa: F811
    together = model.answer_likelihoods(*seen, QUESTION, ANSWERS)
    alone = torch.cat([model.answer_likelihoods(*seen, QUESTION, [answer]) for answer in ANSWERS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_image_and_its_map_are_heard(model, images, seen):  # noqa: F811
    features, maps = seen
    before = model.answer_likelihoods(features, maps, QUESTION, ANSWERS)
    other = model.encode(images)[[1]]
    assert not torch.allclose(model.answer_likelihoods(other, maps, QUESTION, ANSWERS), before, atol=1e-4)
    assert not torch.allclose(model.answer_likelihoods(features, 1 - maps, QUESTION, ANSWERS), before, atol=1e-6)


def test_an_empty_answer_is_refused(model, seen):  # noqa: F811
    with pytest.raises(ValueError, match="empty"):
        model.answer_likelihoods(*seen, QUESTION, ["Yes", ""])
