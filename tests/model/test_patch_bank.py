"""Patches that know where they came from."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory
from anomalygpt.model.patch_bank import PatchBank, unit_patches

GRID, WIDTH, TAPS = 4, 8, 2
PLACES = torch.arange(GRID**2)[None]


def features(views: int = 1, seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(views, GRID**2, WIDTH, generator=generator) for _ in range(TAPS))
    return ImageFeatures(taps, torch.zeros(views, WIDTH))


def bank_of(*photos: ImageFeatures) -> PatchBank:
    return PatchBank.of(photos, PLACES.expand(len(photos[0]), -1))


def test_similarities_are_the_plain_memorys_to_the_bit() -> None:
    query, photos = features(seed=9), [features(seed=seed) for seed in range(3)]
    together = ImageFeatures(
        tuple(torch.cat(layer) for layer in zip(*(p.taps for p in photos), strict=True)), torch.zeros(3, WIDTH)
    )
    found = bank_of(*photos).similarities(unit_patches(query)).mean(dim=0).unflatten(1, (GRID, GRID))
    assert torch.equal(found, PatchMemory(together).similarity(query))


def test_photo_left_out_is_as_if_it_had_not_been_there() -> None:
    photos = [features(seed=seed) for seed in range(3)]
    query = unit_patches(features(seed=9))
    left = bank_of(*photos).without(1)
    assert len(left) == 2 * GRID**2
    assert torch.equal(left.similarities(query), bank_of(photos[0], photos[2]).similarities(query))


def test_views_of_a_photo_belong_to_it() -> None:
    bank = PatchBank.of([features(views=2), features(views=2, seed=1)], PLACES.expand(2, -1))
    assert bank.owners.tolist() == [0] * 2 * GRID**2 + [1] * 2 * GRID**2
    assert bank.places.tolist() == list(range(GRID**2)) * 4


def test_own_place_and_its_neighbours_do_not_count_elsewhere() -> None:
    """By hand: the nearest patch more than one row or column away."""
    photo = features()
    found = bank_of(photo).similarities_elsewhere(unit_patches(photo), reach=1)[0, 0]
    units = F.normalize(photo.taps[0][0], dim=-1)
    for own in range(GRID**2):
        far = [
            other
            for other in range(GRID**2)
            if max(abs(own // GRID - other // GRID), abs(own % GRID - other % GRID)) > 1
        ]
        assert float(found[own]) == pytest.approx(float((units[far] @ units[own]).max()), abs=1e-6)


def test_elsewhere_nothing_is_left_within_reach_of_everything() -> None:
    photo = features()
    assert (
        bank_of(photo).similarities_elsewhere(unit_patches(photo), reach=GRID).tolist() == [[[-1.0] * GRID**2]] * TAPS
    )


def test_elsewhere_takes_several_images() -> None:
    bank, images = bank_of(features()), features(views=3, seed=4)
    together = bank.similarities_elsewhere(unit_patches(images), reach=1)
    apart = [bank.similarities_elsewhere(unit_patches(images[[k]]), reach=1) for k in range(3)]
    assert torch.allclose(together, torch.cat(apart, dim=1))


def test_thinned_bank_keeps_rows_of_all_taps_together() -> None:
    bank = bank_of(*[features(seed=seed) for seed in range(3)])
    thin = bank.thinned(7)
    assert len(thin) == 7
    for row in range(7):
        place = int(thin.owners[row]) * GRID**2 + int(thin.places[row])
        assert all(torch.equal(tap[row], full[place]) for tap, full in zip(thin.taps, bank.taps, strict=True))
    assert bank.thinned(1000) is bank


def test_neighbourhood_is_the_mean_of_the_patches_around() -> None:
    photo = features()
    averaged = unit_patches(photo, neighbourhood=3)[0][0]
    image = photo.taps[0][0].unflatten(0, (GRID, GRID))
    assert torch.allclose(averaged[5], F.normalize(image[:3, :3].flatten(0, 1).mean(dim=0), dim=0), atol=1e-6)
    assert torch.allclose(averaged[0], F.normalize(image[:2, :2].flatten(0, 1).mean(dim=0), dim=0), atol=1e-6)


def test_neighbourhood_of_one_leaves_patches_alone() -> None:
    photo = features()
    assert torch.equal(unit_patches(photo, 1)[1], F.normalize(photo.taps[1], dim=-1))
