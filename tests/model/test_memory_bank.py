"""The memory bank: nearest reference patch over all references (specification 4)."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model import memory_bank
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import PROJECTED_WIDTH, MemoryBank, k_centre

GRID, WIDTH, TAPS = 4, 8, 2


def features(count: int = 1, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(count, GRID**2, WIDTH, generator=generator) for _ in range(TAPS))
    return ImageFeatures(taps, F.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1))


def test_similarity_is_the_cosine_to_the_nearest_patch_of_all_references_averaged_over_the_taps() -> None:
    query, references = features(2), features(3, seed=1)
    by_hand = torch.zeros(2, GRID**2)
    for tap, reference in zip(query.taps, references.taps, strict=True):
        for image in range(2):
            for patch in range(GRID**2):
                cosines = F.cosine_similarity(tap[image, patch][None], reference.flatten(0, 1))
                by_hand[image, patch] += cosines.max() / TAPS
    found = MemoryBank(references).similarity(query)
    assert found.shape == (2, GRID, GRID)
    assert torch.allclose(found.flatten(1), by_hand, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    query, bank = features(3), MemoryBank(features(2, seed=1))
    whole = bank.similarity(query)
    monkeypatch.setattr(memory_bank, "QUERY_CHUNK", chunk)
    monkeypatch.setattr(memory_bank, "BANK_CHUNK", chunk)
    assert torch.allclose(bank.similarity(query), whole, atol=1e-6)


def test_map_is_one_minus_the_similarity_on_aligned_corners() -> None:
    query, bank = features(2), MemoryBank(features(seed=1))
    map_ = bank.anomaly_map(query, 2 * (GRID - 1) + 1)
    assert map_.shape == (2, 1, 7, 7)
    assert torch.allclose(map_[:, 0, ::2, ::2], 1 - bank.similarity(query), atol=1e-6)
    assert bank.anomaly_map(features(seed=1), 32).abs().max() < 1e-5


def test_half_precision_features_are_compared_in_float32() -> None:
    photo = features()
    half = ImageFeatures(tuple(tap.half() for tap in photo.taps), photo.embedding.half())
    map_ = MemoryBank(half).anomaly_map(half, 8)
    assert map_.dtype == torch.float32
    assert map_.abs().max() < 1e-5


def test_tap_weights_are_normalised() -> None:
    query, reference = features(seed=9), features()
    first, second = (
        MemoryBank(ImageFeatures((reference.taps[k],), reference.embedding)).similarity(
            ImageFeatures((query.taps[k],), query.embedding)
        )
        for k in range(TAPS)
    )
    found = MemoryBank(reference).similarity(query, (3.0, 1.0))
    assert torch.allclose(found, 0.75 * first + 0.25 * second)


def test_photo_left_out_is_as_if_it_had_never_been_added() -> None:
    photos, query = features(3), features(seed=9)
    bank = MemoryBank(photos)
    left = bank[bank.photos != 1]
    assert len(left) == 2 * GRID**2
    assert torch.equal(left.similarity(query), MemoryBank(photos[[0, 2]]).similarity(query))


def test_views_of_a_photo_belong_to_it() -> None:
    views = [features(2), features(2, seed=1)]
    bank = MemoryBank(views)
    assert bank.photos.tolist() == [0] * 2 * GRID**2 + [1] * 2 * GRID**2
    for held, *of_views in zip(bank.taps, *(view.taps for view in views), strict=True):
        torch.testing.assert_close(held, F.normalize(torch.cat(of_views), dim=-1).flatten(0, 1))


def test_coreset_keeps_rows_of_all_taps_together() -> None:
    bank = MemoryBank(features(3))
    small = bank.coreset(7)
    assert len(small) == 7
    for row in range(7):
        [source] = (bank.taps[0] == small.taps[0][row]).all(dim=1).nonzero()[:, 0].tolist()
        assert small.photos[row] == source // GRID**2
        assert all(torch.equal(tap[row], full[source]) for tap, full in zip(small.taps, bank.taps, strict=True))
    assert bank.coreset(1000) is bank


def test_points_on_a_line_by_hand() -> None:
    """The mean is 4.6: first 4, then the furthest, 10, then 0."""
    line = torch.tensor([[0.0], [1.0], [4.0], [8.0], [10.0]])
    assert k_centre(line, 1).tolist() == [2]
    assert k_centre(line, 2).tolist() == [2, 4]
    assert k_centre(line, 3).tolist() == [0, 2, 4]


@pytest.mark.parametrize("width", [8, 3 * PROJECTED_WIDTH])
def test_covers_better_than_chance(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(20, width, generator=generator)
    patches = centres.repeat_interleave(25, dim=0) + 0.01 * torch.randn(500, width, generator=generator)
    chance = torch.randperm(500, generator=generator)[:20]
    # The largest distance of a patch to the nearest chosen one.
    own, random = (torch.cdist(patches, patches[rows]).amin(dim=1).max() for rows in (k_centre(patches, 20), chance))
    assert float(own) < 0.5 * float(random)


def test_same_patches_give_the_same_choice_and_none_twice() -> None:
    patches = torch.randn(300, 2 * PROJECTED_WIDTH, generator=torch.Generator().manual_seed(2))
    first, second = k_centre(patches, 40), k_centre(patches, 40)
    assert torch.equal(first, second)
    assert first.tolist() == sorted(set(first.tolist()))
    assert len(set(k_centre(torch.ones(10, 4), 6).tolist())) == 6, "equal patches are not chosen twice"


def test_large_banks_are_kept_in_half_precision_and_compared_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    query, references = features(1), features(3, seed=1)
    whole = MemoryBank(references)
    expected = whole.similarity(query)
    monkeypatch.setattr(memory_bank, "HALF_ABOVE", 10)
    half = MemoryBank(references)
    assert half.taps[0].dtype == torch.float16
    torch.testing.assert_close(half.similarity(query), expected, rtol=0, atol=1e-3)
    assert half.coreset(5).similarity(query).dtype == torch.float32
