"""From patches to a map and a score."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.inference.comparison import ScaleMemory, blurred, distance_map, top_mean, weighted_mean
from anomalygpt.inference.reference_settings import OFFICIAL
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.few_shot import PatchMemory
from anomalygpt.model.foreground import BACKGROUND_WEIGHT, Background
from anomalygpt.model.patch_bank import PatchBank

GRID, WIDTH, TAPS, SIDE = 4, 8, 2, 32


def features(seed: int = 0) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(torch.randn(1, GRID**2, WIDTH, generator=generator) for _ in range(TAPS))
    return ImageFeatures(taps, torch.zeros(1, WIDTH))


def memory(*photos: ImageFeatures) -> ScaleMemory:
    return ScaleMemory(PatchBank.of(photos, torch.arange(GRID**2)[None]))


QUERY, REFERENCE = features(seed=9), features()
CLOSE = memory(REFERENCE).closeness(QUERY, OFFICIAL)


def test_official_settings_give_the_papers_map_to_the_bit() -> None:
    found = distance_map([CLOSE], OFFICIAL, SIDE, GRID)
    assert torch.equal(found, PatchMemory(REFERENCE).anomaly_map(QUERY, SIDE))


def test_euclid_is_the_length_of_the_difference_of_unit_patches() -> None:
    found = 1 - memory(REFERENCE).closeness(QUERY, replace(OFFICIAL, distance="euclid"))
    by_hand = torch.stack(
        [
            torch.cdist(F.normalize(query[0], dim=-1), F.normalize(reference[0], dim=-1)).amin(dim=1)
            for query, reference in zip(QUERY.taps, REFERENCE.taps, strict=True)
        ]
    ).mean(dim=0)
    assert torch.allclose(found.flatten(), by_hand, atol=1e-5)


def test_tap_of_weight_zero_does_not_count() -> None:
    alone = [
        memory(ImageFeatures(r.taps[:1], r.embedding)).closeness(ImageFeatures(q.taps[:1], q.embedding), OFFICIAL)
        for r, q in [(REFERENCE, QUERY)]
    ][0]
    assert torch.allclose(memory(REFERENCE).closeness(QUERY, replace(OFFICIAL, tap_weights=(3.0, 0.0))), alone)


def test_normalised_tap_counts_in_units_of_what_is_usual() -> None:
    usual = replace(memory(REFERENCE), usual=torch.tensor([0.5, 0.5]))
    assert torch.allclose(1 - usual.closeness(QUERY, OFFICIAL), 2 * (1 - CLOSE), atol=1e-6)


def test_background_counts_less() -> None:
    everything = Background(torch.eye(WIDTH)[0], distance=3.0)
    quiet = replace(memory(REFERENCE), background=everything)
    assert torch.allclose(1 - quiet.closeness(QUERY, OFFICIAL), BACKGROUND_WEIGHT * (1 - CLOSE), atol=1e-6)
    nothing = replace(memory(REFERENCE), background=replace(everything, distance=-1.0))
    assert torch.equal(nothing.closeness(QUERY, OFFICIAL), CLOSE)


def test_scales_are_weighed() -> None:
    finer = torch.rand(1, 2 * GRID, 2 * GRID)
    settings = replace(OFFICIAL, scales=(1, 2), scale_weights=(1.0, 3.0))
    one, two = (distance_map([near], OFFICIAL, SIDE, GRID) for near in (CLOSE, finer))
    assert torch.allclose(distance_map([CLOSE, finer], settings, SIDE, GRID), 0.25 * one + 0.75 * two, atol=1e-6)
    even = distance_map([CLOSE, finer], replace(settings, scale_weights=()), SIDE, GRID)
    assert torch.allclose(even, 0.5 * one + 0.5 * two, atol=1e-6)


@pytest.mark.parametrize(("interpolation", "peak"), [("aligned", 1), ("centred", 4)])
def test_first_patch_peaks_on_the_border_or_up_to_its_own_middle(interpolation: str, peak: int) -> None:
    """32 pixels for 4 patches: the first one's middle lies between pixels 3 and 4."""
    close = torch.ones(1, GRID, GRID)
    close[0, 0, 0] = 0.0
    ramp = distance_map([close], replace(OFFICIAL, interpolation=interpolation), SIDE, GRID)[0, 0, :, 0]
    assert int((ramp == 1).sum()) == peak
    assert bool((ramp[peak:].diff() <= 0).all())


def test_blur_keeps_the_sum_and_lowers_the_peak() -> None:
    map_ = torch.zeros(1, 1, 33, 33)
    map_[0, 0, 16, 16] = 1
    soft = blurred(map_, 2.0)
    assert float(soft.sum()) == pytest.approx(1, abs=1e-5)
    assert float(soft.max()) == pytest.approx(1 / (2 * torch.pi * 4), rel=0.05)
    assert torch.equal(blurred(map_, 0.0), map_)


def test_smoothing_is_in_patches_of_the_own_grid() -> None:
    plain = distance_map([CLOSE], OFFICIAL, SIDE, GRID)
    assert torch.allclose(
        distance_map([CLOSE], replace(OFFICIAL, smoothing=0.5), SIDE, GRID), blurred(plain, 0.5 * SIDE / GRID)
    )


def test_score_is_the_maximum_or_the_mean_of_the_highest() -> None:
    maps = torch.arange(200.0).view(2, 1, 10, 10)
    assert top_mean(maps, 0.0).tolist() == [99, 199]
    assert top_mean(maps, 0.04).tolist() == [97.5, 197.5]
    assert top_mean(maps, 1.0).tolist() == pytest.approx([49.5, 149.5])


def test_weights_are_shares() -> None:
    layers = torch.tensor([[1.0, 2.0], [5.0, 6.0]])
    assert weighted_mean(layers, (1, 3)).tolist() == [4, 5]
    assert weighted_mean(layers, ()).tolist() == [3, 4]
