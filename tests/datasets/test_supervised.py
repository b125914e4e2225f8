"""Samples from real masks, and the pairs made of them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anomalygpt.datasets.crack_forest import index_crack_forest
from anomalygpt.datasets.dialogue import parse_verdict
from anomalygpt.datasets.loco import index_loco
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.sample import collate_pairs
from anomalygpt.datasets.supervised import SupervisedPairs, SupervisedSamples, supervised_split
from anomalygpt.datasets.visa import index_visa
from anomalygpt.datasets.wording import Wording
from tests.shared_data import shared


@pytest.fixture
def records(mvtec_tree, visa_tree, loco_tree, crack_tree):
    # The other trees lie in folders of the MVTec tree that hold no train/.
    trees = (index_mvtec(mvtec_tree), index_visa(visa_tree), index_loco(loco_tree), index_crack_forest(crack_tree))
    return [record for tree in trees for record in tree]


def test_the_answer_follows_from_the_mask(records, transform):
    dataset = SupervisedSamples(records, transform, seed=0, wording=Wording(languages=("en", "zh")))
    for index, record in enumerate(records):
        sample = dataset[index]
        assert sample.image.shape == (3, 64, 64) and sample.mask.shape == (1, 64, 64)
        assert sample.is_anomalous == record.is_anomalous == bool(sample.mask.any())
        assert parse_verdict(sample.turns[1].text) is sample.is_anomalous


def test_positions_come_from_every_mask_of_a_photo(records, transform):
    [index] = [at for at, record in enumerate(records) if record.defect == "logical_anomalies"]
    sample = SupervisedSamples(records, transform, seed=0, wording=Wording(vary=False))[index]
    assert sample.turns[1].text == (
        "Yes, there are 2 anomalies in the image, they are at the bottom right and the top left of the image."
    )


def test_a_defect_too_thin_for_the_threshold_is_not_denied(mvtec_tree, transform):
    [record] = [r for r in index_mvtec(mvtec_tree, ["screw"]) if r.is_anomalous]
    thin = Image.new("L", (640, 640), 0)
    thin.paste(255, (100, 0, 102, 640))
    thin.save(record.mask)
    sample = SupervisedSamples([record], transform, seed=0)[0]
    assert sample.is_anomalous and 0 < sample.mask.mean() < 0.05
    Image.new("L", (640, 640), 0).save(record.mask)
    with pytest.raises(DatasetError, match=r"000_mask\.png: marks nothing"):
        SupervisedSamples([record], transform, seed=0)[0]


def test_the_kind_of_defect_is_told_when_asked(mvtec_tree, transform):
    defects = [replace(r, defect="scratch_head") for r in index_mvtec(mvtec_tree, ["screw"]) if r.is_anomalous]
    dataset = SupervisedSamples(defects, transform, seed=0)
    said = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        said |= {turn.text for turn in dataset[0].turns}
    assert "The head of the screw is scratched." in said


def test_seed_and_epoch_decide_a_sample_whatever_the_workers(records, transform):
    pairs = SupervisedPairs(SupervisedSamples(records, transform, seed=3))

    def batches(workers):
        return list(DataLoader(pairs, batch_size=2, num_workers=workers, collate_fn=collate_pairs))

    alone = batches(0)
    for first, second in zip(alone, batches(2), strict=True):
        assert torch.equal(first.images, second.images) and first.conversations == second.conversations
    pairs.set_epoch(1)
    assert [b.conversations for b in batches(0)] != [b.conversations for b in alone]


def test_a_pair_is_of_one_class_where_the_class_has_normal_photos(records, transform):
    pairs = SupervisedPairs(SupervisedSamples([r for r in records if r.split == "train" or r.mask], transform, seed=0))
    assert len(pairs) == sum(record.is_anomalous for record in records)
    for pair in (pairs[index] for index in range(len(pairs))):
        assert pair.defect.is_anomalous and not pair.normal.is_anomalous
        road = pair.defect.class_name == "pavement"
        assert (pair.normal.class_name == pair.defect.class_name) is not road
        assert (pair.reference is None) is road
        assert road or not torch.equal(pair.reference, pair.normal.image)


def test_normal_test_photos_stay_out_of_training_and_validation(records):
    train, validation = supervised_split(records, 0.5, seed=0)
    used = [*train, *validation]
    assert len({record.image for record in used}) == len(used)
    assert all(record.is_anomalous or record.split != "test" for record in used)
    assert {r.split for r in validation if r.class_name == "pushpins"} == {"validation"}, "one defect of each kind only"
    assert Counter(r.is_anomalous for r in validation if r.class_name == "pavement") == {True: 1}
    assert supervised_split(records, 0.5, seed=0) == (train, validation)
    assert supervised_split(records[::-1], 0.5, seed=0) == (train, validation)
    assert supervised_split(records, 0, seed=0).validation == []


def test_unmarked_defects_and_empty_lists_are_errors(mvtec_tree, transform):
    unmarked = [replace(record, mask=None) for record in index_mvtec(mvtec_tree)]
    with pytest.raises(DatasetError, match=r"2 of 10 records lack a mask: .*crack.000\.png"):
        SupervisedSamples(unmarked, transform, seed=0)
    with pytest.raises(DatasetError, match="no records; expected normal photos"):
        SupervisedSamples([], transform, seed=0)
    good = [record for record in unmarked if not record.is_anomalous]
    with pytest.raises(DatasetError, match="0 defects with a mask and 8 normal photos; pairs need both"):
        SupervisedPairs(SupervisedSamples(good, transform, seed=0))


@pytest.mark.data
def test_real_cracks_are_marked_and_named(transform):
    records = index_crack_forest(shared("data/CrackForest"))[::8]
    dataset = SupervisedSamples(records, transform, seed=0)
    shares = [float(dataset[index].mask.mean()) for index in range(len(dataset))]
    assert all(share > 0 for share in shares) and np.median(shares) < 0.1
