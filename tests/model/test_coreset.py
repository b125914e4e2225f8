"""Greedy k-centre."""

import pytest
import torch

from anomalygpt.model.memory_bank import PROJECTED_WIDTH, k_centre


def cover(patches: torch.Tensor, chosen: torch.Tensor) -> float:
    """The largest distance of a patch to the nearest chosen one."""
    return float(torch.cdist(patches, patches[chosen]).amin(dim=1).max())


def test_points_on_a_line_by_hand() -> None:
    """The mean is 4.6: first 4, then the furthest, 10, then 0."""
    line = torch.tensor([[0.0], [1.0], [4.0], [8.0], [10.0]])
    assert k_centre(line, 1).tolist() == [2]
    assert k_centre(line, 2).tolist() == [2, 4]
    assert k_centre(line, 3).tolist() == [0, 2, 4]


def test_lone_patch_is_kept_where_a_random_choice_would_lose_it() -> None:
    crowd = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * 0.01
    lone = torch.ones(1, 16)
    assert 500 in k_centre(torch.cat([crowd, lone]), 3).tolist()


@pytest.mark.parametrize("width", [8, 3 * PROJECTED_WIDTH])
def test_covers_better_than_chance(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(20, width, generator=generator)
    patches = centres.repeat_interleave(25, dim=0) + 0.01 * torch.randn(500, width, generator=generator)
    chance = torch.randperm(500, generator=generator)[:20]
    assert cover(patches, k_centre(patches, 20)) < 0.5 * cover(patches, chance)


def test_same_patches_give_the_same_choice_and_none_twice() -> None:
    patches = torch.randn(300, 2 * PROJECTED_WIDTH, generator=torch.Generator().manual_seed(2))
    first, second = k_centre(patches, 40), k_centre(patches, 40)
    assert torch.equal(first, second)
    assert first.tolist() == sorted(set(first.tolist()))


def test_alike_patches_are_not_chosen_twice() -> None:
    assert k_centre(torch.ones(10, 4), 10).tolist() == list(range(10))
    assert len(set(k_centre(torch.ones(10, 4), 6).tolist())) == 6


@pytest.mark.parametrize(("count", "keep"), [(0, 1), (5, 0)])
def test_nothing_to_choose_is_refused(count: int, keep: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        k_centre(torch.zeros(count, 4), keep)
