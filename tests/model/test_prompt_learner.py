"""Eighteen prompts whatever the language model's width (specification 5)."""

import pytest
import torch

from anomalygpt.model.image_decoder import ImageDecoder
from anomalygpt.model.prompt_learner import MAP_SIZE, PromptLearner


@pytest.mark.parametrize("width", [8, 576])
def test_eighteen_prompts_of_any_width_and_the_base_prompts_come_first(width: int) -> None:
    learner = PromptLearner(width)
    with torch.no_grad():
        prompts = learner(torch.rand(2, 1, MAP_SIZE, MAP_SIZE))
    assert prompts.shape == (2, 18, width)
    assert torch.equal(prompts[0, :9], learner.base_prompts)
    assert torch.equal(prompts[0, :9], prompts[1, :9])
    assert not torch.allclose(prompts[0, 9:], prompts[1, 9:])


def test_prompts_from_the_map_are_in_reading_order() -> None:
    """A change in the top right corner reaches the prompts of that corner (row by row: 1, 2, 4, 5) and no others."""
    torch.manual_seed(0)
    learner = PromptLearner(8)
    empty = torch.zeros(1, 1, MAP_SIZE, MAP_SIZE)
    corner = empty.clone()
    corner[..., :32, -32:] = 1  # top right
    with torch.no_grad():
        moved = (learner(corner) - learner(empty))[0, 9:].abs().sum(dim=-1)
    assert moved.nonzero().flatten().tolist() == [1, 2, 4, 5]


def test_released_names_and_sizes() -> None:
    with torch.device("meta"):
        decoder, learner = ImageDecoder(1280, 1024, 4), PromptLearner(4096)
    names = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
    convolutions = [f"meta_net.{i}.{kind}" for i in (0, 3, 6, 9, 12, 15) for kind in ("weight", "bias")]
    assert sorted(names) == sorted([*convolutions, "base_prompts"])
    assert names["base_prompts"] == (9, 4096)
    assert names["meta_net.15.weight"] == (4096, 1024, 5, 5)
    assert sum(p.numel() for part in (decoder, learner) for p in part.parameters()) == 112_663_480
