"""Photos without a label that judge each other."""

import pytest
import torch

from anomalygpt.errors import UserError
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.references import mutual_similarity
from anomalygpt.model.encoder import ImageFeatures


def test_a_patch_is_judged_by_the_photos_that_are_most_like_it() -> None:
    """Five photos of two patches; the last one has one that no other has, two others share theirs."""
    common, shared, alone = torch.eye(3)
    seconds = [common, common, shared, shared, alone]
    photos = [ImageFeatures((torch.stack([common] * 3 + [second])[None],), torch.zeros(1, 3)) for second in seconds]
    similarity = mutual_similarity(photos)[:, 1, 1]  # of the four others, the nearest one judges
    assert similarity.tolist() == pytest.approx([1, 1, 1, 1, 0])


def test_the_photo_with_a_defect_stands_out_of_those_that_judge_each_other(
    predictor: Predictor, photo, monkeypatch
) -> None:
    photos = [photo(seed=seed) for seed in range(9)] + [photo(seed=9, scratch=(0.4, 0.6))]
    predictor.set_unlabelled(iter(photos))
    monkeypatch.setattr(predictor.model, "encode", None)  # each photo was encoded once already
    found = [predictor.inspect(each) for each in photos]
    assert max(found, key=lambda each: each.probability) is found[-1]
    assert [each.is_anomalous for each in found][-1]
    assert sum(each.is_anomalous for each in found[:-1]) <= 2
    assert found[-1].map.shape == (224, 224)
    assert found[0].map[134, 90] < found[-1].map[134, 90]
    assert {each.reason for each in found} == {""}
    batch = predictor.inspect_batch(photos[:2])
    assert [each.score for each in batch] == pytest.approx([each.score for each in found[:2]])
    with pytest.raises(UserError, match="not among"):
        predictor.inspect(photo(seed=3).rotate(90).crop((0, 0, 90, 60)))
    predictor.forget_feedback()  # there is none
    assert predictor.inspect(photos[0]).score == found[0].score
    predictor.set_references([])
    assert predictor.unlabelled is None


def test_a_defective_photo_under_two_names_does_not_vouch_for_itself(predictor: Predictor, photo) -> None:
    photos = [photo(seed=seed) for seed in range(5)] + [photo(seed=9, scratch=(0.4, 0.6))] * 3
    predictor.set_unlabelled(iter(photos))
    found = [predictor.inspect(each).score for each in photos[:6]]
    assert max(found) == found[-1]


def test_too_few_photos_are_refused(predictor: Predictor, photo) -> None:
    with pytest.raises(UserError, match="expected 3 or more"):
        predictor.set_unlabelled([photo(), photo(seed=1)])
