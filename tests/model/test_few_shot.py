"""The patch memory: nearest reference patch over all references (specification 4)."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model import few_shot
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory, nearest_similarity

GRID, WIDTH, TAPS = 4, 8, 2


def features(count: int, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(count, GRID**2, WIDTH, generator=generator) for _ in range(TAPS))
    return ImageFeatures(taps, F.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1))


def test_similarity_is_the_cosine_to_the_nearest_patch_averaged_over_the_taps() -> None:
    query, references = features(1), features(2, seed=1)
    by_hand = torch.zeros(GRID**2)
    for tap, reference in zip(query.taps, references.taps, strict=True):
        for patch in range(GRID**2):
            cosines = F.cosine_similarity(tap[0, patch][None], reference.flatten(0, 1))
            by_hand[patch] += cosines.max() / TAPS
    found = PatchMemory(references).similarity(query)
    assert found.shape == (1, GRID, GRID)
    assert torch.allclose(found.flatten(), by_hand, atol=1e-6)


def test_several_references_count_as_the_nearest_of_all() -> None:
    """Not their mean: the largest similarity in each tap, over every reference."""
    query, references = features(2), features(3, seed=1)
    together = [
        nearest_similarity(F.normalize(tap, dim=-1), F.normalize(bank, dim=-1).flatten(0, 1))
        for tap, bank in zip(query.taps, references.taps, strict=True)
    ]
    apart = [
        torch.stack(
            [nearest_similarity(F.normalize(tap, dim=-1), F.normalize(bank[k], dim=-1)) for k in range(3)]
        ).amax(dim=0)
        for tap, bank in zip(query.taps, references.taps, strict=True)
    ]
    for ours, expected in zip(together, apart, strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.allclose(
        PatchMemory(references).similarity(query).flatten(1), torch.stack(apart).mean(dim=0), atol=1e-6
    )


def test_a_further_reference_never_makes_a_photo_stranger() -> None:
    query, references = features(2), features(3, seed=1)
    few = PatchMemory(references[:2]).similarity(query)
    more = PatchMemory(references).similarity(query)
    assert bool((more >= few - 1e-6).all())
    assert float((more - few).max()) > 0.01


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    query, memory = features(3), PatchMemory(features(2, seed=1))
    whole = memory.similarity(query)
    monkeypatch.setattr(few_shot, "QUERY_CHUNK", chunk)
    assert torch.allclose(memory.similarity(query), whole, atol=1e-6)


def test_the_reference_itself_has_no_anomaly() -> None:
    photo = features(1)
    assert PatchMemory(photo).anomaly_map(photo, 32).abs().max() < 1e-5


def test_strange_patch_is_found_where_it_lies() -> None:
    reference = features(1)
    odd = ImageFeatures(tuple(tap.clone() for tap in reference.taps), reference.embedding)
    for tap in odd.taps:
        tap[0, 1 * GRID + 2] *= -1  # row 1, column 2
    seen = PatchMemory(reference).similarity(odd)[0]
    assert divmod(int(seen.argmin()), GRID) == (1, 2)
    assert int((seen < 0.999).sum()) == 1


def test_half_precision_features_are_compared_in_float32() -> None:
    photo = features(1)
    half = ImageFeatures(tuple(tap.half() for tap in photo.taps), photo.embedding.half())
    map_ = PatchMemory(half).anomaly_map(half, 8)
    assert map_.dtype == torch.float32
    assert map_.abs().max() < 1e-5


def test_memory_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        PatchMemory(features(1)[:0])
