"""Maps and scores, from similarities to references and from text features."""

import pytest
import torch

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.inference.anomaly_map import blurred, distance_map, text_maps, top_mean
from anomalygpt.inference.predictor import Predictor

GRID, SIDE = 4, 32
SIMILARITY = torch.rand(1, GRID, GRID, generator=torch.Generator().manual_seed(0))
PLAIN = distance_map([SIMILARITY], ReferenceSettings(), SIDE, GRID)


def custom(**settings) -> ReferenceSettings:
    return ReferenceSettings(preset="custom", **settings)


def test_scales_are_weighted() -> None:
    finer = torch.rand(1, 2 * GRID, 2 * GRID)
    settings = custom(scales=(1, 2), scale_weights=(1.0, 3.0))
    two = distance_map([finer], ReferenceSettings(), SIDE, GRID)
    found = distance_map([SIMILARITY, finer], settings, SIDE, GRID)
    assert torch.allclose(found, 0.25 * PLAIN + 0.75 * two, atol=1e-6)
    even = distance_map([SIMILARITY, finer], custom(scales=(1, 2)), SIDE, GRID)
    assert torch.allclose(even, 0.5 * PLAIN + 0.5 * two, atol=1e-6)


@pytest.mark.parametrize(("interpolation", "peak"), [("aligned", 1), ("centred", 4)])
def test_first_patch_peaks_on_the_border_or_up_to_its_own_middle(interpolation: str, peak: int) -> None:
    """32 pixels for 4 patches: the first one's middle lies between pixels 3 and 4."""
    similarity = torch.ones(1, GRID, GRID)
    similarity[0, 0, 0] = 0.0
    ramp = distance_map([similarity], custom(interpolation=interpolation), SIDE, GRID)[0, 0, :, 0]
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
    smooth = distance_map([SIMILARITY], custom(smoothing=0.5), SIDE, GRID)
    assert torch.allclose(smooth, blurred(PLAIN, 0.5 * SIDE / GRID))


def test_score_is_the_maximum_or_the_mean_of_the_highest() -> None:
    maps = torch.arange(200.0).view(2, 1, 10, 10)
    assert top_mean(maps, 0.0).tolist() == [99, 199]
    assert top_mean(maps, 0.04).tolist() == [97.5, 197.5]
    assert top_mean(maps, 1.0).tolist() == pytest.approx([49.5, 149.5])


def text(predictor, photos, scales):
    with torch.inference_mode():
        return text_maps(predictor.model, photos, "object", predictor.transform, scales)


@pytest.fixture
def photos(photo):
    return [photo(seed=1), photo((300, 260), scratch=(0.3, 0.6), seed=2)]


def test_one_scale_is_the_models_own_map(predictor, photos):
    features, found = text(predictor, photos, (1,))
    with torch.inference_mode():
        own = predictor.model.encode(torch.stack([predictor.transform(photo) for photo in photos]))
        assert torch.equal(found, predictor.model.anomaly_map(own, ["object"] * 2))
    assert torch.equal(features.embedding, own.embedding)


def test_several_scales_give_their_geometric_mean_and_the_features_of_the_own_one(predictor, photos):
    (features, one), (_, two), (both_features, both) = (text(predictor, photos, s) for s in ((1,), (2,), (1, 2)))
    assert both.shape == (2, 1, 224, 224)
    assert torch.allclose(both, (one * two).sqrt(), atol=1e-6)
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.equal(both_features.embedding, features.embedding)
    from_settings = Predictor(predictor.model, InferenceConfig(text_scales=(1, 2))).inspect(photos[1])
    assert torch.allclose(from_settings.model_map, both[1:], atol=1e-5)
