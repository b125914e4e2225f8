"""The memory bank: nearest reference patch over all references (specification 4)."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model import memory_bank
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank, unit_patches, weighted_mean

GRID, WIDTH, TAPS = 4, 8, 2


def features(count: int = 1, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(count, GRID**2, WIDTH, generator=generator) for _ in range(TAPS))
    return ImageFeatures(taps, F.normalize(torch.randn(count, WIDTH, generator=generator), dim=-1))


# -- the paper's similarity -------------------------------------------------------------------------------------------


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


def test_a_further_reference_never_makes_a_photo_more_anomalous() -> None:
    query, references = features(2), features(3, seed=1)
    few = MemoryBank(references[:2]).similarity(query)
    more = MemoryBank(references).similarity(query)
    assert bool((more >= few - 1e-6).all())
    assert float((more - few).max()) > 0.01


@pytest.mark.parametrize("chunk", [1, 7, 10**6])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    query, bank = features(3), MemoryBank(features(2, seed=1))
    whole = bank.similarity(query)
    monkeypatch.setattr(memory_bank, "QUERY_CHUNK", chunk)
    assert torch.allclose(bank.similarity(query), whole, atol=1e-6)


def test_map_is_one_minus_the_similarity_on_aligned_corners() -> None:
    query, bank = features(2), MemoryBank(features(seed=1))
    map_ = bank.anomaly_map(query, 2 * (GRID - 1) + 1)
    assert map_.shape == (2, 1, 7, 7)
    assert torch.allclose(map_[:, 0, ::2, ::2], 1 - bank.similarity(query), atol=1e-6)
    assert bank.anomaly_map(features(seed=1), 32).abs().max() < 1e-5


def test_anomalous_patch_is_found_where_it_lies() -> None:
    reference = features()
    odd = ImageFeatures(tuple(tap.clone() for tap in reference.taps), reference.embedding)
    for tap in odd.taps:
        tap[0, 1 * GRID + 2] *= -1  # row 1, column 2
    seen = MemoryBank(reference).similarity(odd)[0]
    assert divmod(int(seen.argmin()), GRID) == (1, 2)
    assert int((seen < 0.999).sum()) == 1


def test_half_precision_features_are_compared_in_float32() -> None:
    photo = features()
    half = ImageFeatures(tuple(tap.half() for tap in photo.taps), photo.embedding.half())
    map_ = MemoryBank(half).anomaly_map(half, 8)
    assert map_.dtype == torch.float32
    assert map_.abs().max() < 1e-5


def test_bank_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        MemoryBank(features()[:0])


@pytest.mark.parametrize(("weights", "mean"), [((1, 3), [4, 5]), ((), [3, 4])])
def test_weights_are_shares(weights: tuple[float, ...], mean: list[float]) -> None:
    assert weighted_mean(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), weights).tolist() == mean


def test_tap_of_weight_zero_does_not_count() -> None:
    query, reference = features(seed=9), features()
    first = [ImageFeatures(each.taps[:1], each.embedding) for each in (reference, query)]
    found = MemoryBank(reference).similarity(query, (3.0, 0.0))
    assert torch.allclose(found, MemoryBank(first[0]).similarity(first[1]))


# -- photos and positions ---------------------------------------------------------------------------------------------


def test_photo_left_out_is_as_if_it_had_never_been_added() -> None:
    photos, query = features(3), features(seed=9)
    left = MemoryBank(photos).without(1)
    assert len(left) == 2 * GRID**2
    assert torch.equal(left.similarity(query), MemoryBank(photos[[0, 2]]).similarity(query))


def test_views_of_a_photo_belong_to_it() -> None:
    views = [features(2), features(2, seed=1)]
    bank = MemoryBank(views, torch.arange(GRID**2).expand(2, -1))
    assert bank.photos.tolist() == [0] * 2 * GRID**2 + [1] * 2 * GRID**2
    assert bank.positions.tolist() == list(range(GRID**2)) * 4
    assert all(torch.equal(a, b) for a, b in zip(bank.taps, MemoryBank(views).taps, strict=True))


def test_excluded_neighbourhood_is_left_out() -> None:
    """By hand: the nearest patch more than one row or column away."""
    photo = features()
    one_tap = ImageFeatures(photo.taps[:1], photo.embedding)
    found = MemoryBank(one_tap).similarity(one_tap, exclusion_radius=1).flatten()
    units = F.normalize(photo.taps[0][0], dim=-1)
    for own in range(GRID**2):
        far = [
            other
            for other in range(GRID**2)
            if max(abs(own // GRID - other // GRID), abs(own % GRID - other % GRID)) > 1
        ]
        assert float(found[own]) == pytest.approx(float((units[far] @ units[own]).max()), abs=1e-6)


def test_similarity_is_minus_one_where_everything_is_excluded() -> None:
    found = MemoryBank(features()).similarity(features(), exclusion_radius=GRID)
    assert torch.equal(found, -torch.ones(1, GRID, GRID))


def test_exclusion_takes_several_images() -> None:
    bank, images = MemoryBank(features()), features(3, seed=4)
    together = bank.similarity(images, exclusion_radius=1)
    apart = [bank.similarity(images[[k]], exclusion_radius=1) for k in range(3)]
    assert torch.allclose(together, torch.cat(apart))


def test_coreset_keeps_rows_of_all_taps_together() -> None:
    bank = MemoryBank(features(3))
    small = bank.coreset(7)
    assert len(small) == 7
    for row in range(7):
        source = int(small.photos[row]) * GRID**2 + int(small.positions[row])
        assert all(torch.equal(tap[row], full[source]) for tap, full in zip(small.taps, bank.taps, strict=True))
    assert bank.coreset(1000) is bank


def test_unit_patches_have_unit_length() -> None:
    photo = features()
    assert torch.equal(unit_patches(photo)[1], F.normalize(photo.taps[1], dim=-1))
