"""Text maps from one distance and from several."""

import pytest
import torch

from anomalygpt.inference.text_map import text_maps


def maps(predictor, photos, scales):
    with torch.inference_mode():
        return text_maps(predictor.model, photos, ["object"] * len(photos), predictor.transform, scales)


@pytest.fixture
def photos(photo):
    return [photo(seed=1), photo((300, 260), scratch=(0.3, 0.6), seed=2)]


def test_one_scale_is_the_models_own_map(predictor, photos):
    features, found = maps(predictor, photos, (1,))
    with torch.inference_mode():
        own = predictor.model.encode(torch.stack([predictor.transform(photo) for photo in photos]))
        assert torch.equal(found, predictor.model.anomaly_map(own, ["object"] * 2))
    assert torch.equal(features.embedding, own.embedding)


def test_several_scales_give_their_geometric_mean_and_the_features_of_the_own_one(predictor, photos):
    (features, one), (_, two), (both_features, both) = (maps(predictor, photos, s) for s in ((1,), (2,), (1, 2)))
    assert both.shape == (2, 1, 224, 224)
    assert torch.allclose(both, (one * two).sqrt(), atol=1e-6)
    assert not torch.allclose(one, two, atol=1e-3)
    assert torch.equal(both_features.embedding, features.embedding)


def test_the_predictor_looks_as_its_setting_says(predictor, photos, monkeypatch):
    monkeypatch.setattr(predictor, "text_scales", (1, 2))
    assert torch.allclose(predictor.look(photos[1]).model_map, maps(predictor, photos[1:], (1, 2))[1])
