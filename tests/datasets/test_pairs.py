"""Training pairs, simulated and real: agreement of photo, mask and text, determinism, batches."""

import multiprocessing
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from anomalygpt.datasets.class_info import ClassInfo
from anomalygpt.datasets.csv_table import index_visa
from anomalygpt.datasets.dialogue import Wording
from anomalygpt.datasets.layouts import index_crack_forest
from anomalygpt.datasets.pairs import TrainingPairs, collate_pairs
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.regions import positions_of
from anomalygpt.datasets.synthesis import NSASettings
from anomalygpt.datasets.tree import index_tree
from anomalygpt.inference.answers import parse_verdict

SimulatedPairs, SupervisedPairs = TrainingPairs, partial(TrainingPairs, real=True)
PLACE = re.compile(r"the (top left|top right|bottom left|bottom right|top|bottom|left|right|center)\b")


@pytest.fixture
def train_records(mvtec_tree):
    return [record for record in index_tree(mvtec_tree) if record.split == "train"]


@pytest.fixture
def all_records(mvtec_tree, visa_tree, loco_tree, crack_tree):
    # The other trees are in folders of the MVTec tree that hold no train/.
    trees = (index_tree(mvtec_tree), index_visa(visa_tree), index_tree(loco_tree), index_crack_forest(crack_tree))
    return [record for tree in trees for record in tree]


def batches(dataset, workers, **options):
    return list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate_pairs, **options))


def assert_same(first, second):
    assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)
    assert (first.references is None) == (second.references is None)
    assert first.references is None or torch.equal(first.references, second.references)
    assert first.conversations == second.conversations and first.class_names == second.class_names


@pytest.mark.parametrize("kind", [SimulatedPairs, SupervisedPairs])
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_pairs_do_not_depend_on_the_number_of_workers(train_records, all_records, transform, kind, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this machine")
    dataset = kind(train_records if kind is SimulatedPairs else all_records, transform, seed=3)
    for first, second in zip(batches(dataset, 0), batches(dataset, 2, multiprocessing_context=method), strict=True):
        assert_same(first, second)


def test_running_workers_follow_the_epoch(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=3)
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=collate_pairs, persistent_workers=True)
    first = list(loader)
    dataset.set_epoch(1)
    second = list(loader)
    assert not torch.equal(first[0].images, second[0].images)
    for seen, expected in zip(second, batches(dataset, 0), strict=True):
        assert_same(seen, expected)


def test_seed_and_epoch_change_the_pairs(train_records, all_records, transform):
    one, other = (SimulatedPairs(train_records, transform, seed=seed) for seed in (0, 1))
    assert not torch.equal(one[0].defect.image, other[0].defect.image)
    before = one[0].defect.image
    for epoch in (1, 0):
        one.set_epoch(epoch)
        assert torch.equal(before, one[0].defect.image) is (epoch == 0)
    real = SupervisedPairs(all_records, transform, seed=3)
    alone = [batch.conversations for batch in batches(real, 0)]
    real.set_epoch(1)
    assert [batch.conversations for batch in batches(real, 0)] != alone


def test_a_batch_alternates_normal_and_defect(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0)
    batch = collate_pairs([dataset[0], dataset[4]]).to("cpu")
    assert batch.images.shape == (4, 3, 64, 64) and batch.masks.shape == (4, 1, 64, 64)
    assert torch.equal(batch.images[2], dataset[4].normal.image)
    assert torch.equal(batch.images[3], dataset[4].defect.image)
    assert batch.references.shape == (2, 3, 64, 64), "one for each pair"
    assert torch.equal(batch.references[1], dataset[4].reference)
    assert batch.class_names == ["bottle", "bottle", "screw", "screw"]
    assert batch.conversations[1] == dataset[0].defect.turns
    bare = dataset[0]._replace(reference=None)
    assert collate_pairs([dataset[0], bare]).references is None


def test_the_reference_is_another_photo_of_the_class(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0)
    for index, record in enumerate(train_records):
        others = [r for r in train_records if r.class_name == record.class_name and r != record]
        candidates = [transform(load_image(other.image)) for other in others]
        assert any(torch.equal(dataset[index].reference, candidate) for candidate in candidates)
    pair = SimulatedPairs(train_records[:1], transform, seed=0)[0]
    assert torch.equal(pair.reference, pair.normal.image), "itself where it is the only one"


def test_the_source_and_the_settings_of_a_class_change_its_patches(train_records, transform):
    same, anywhere = (SimulatedPairs(train_records, transform, 0, source) for source in ("same", "any"))
    assert any(not torch.equal(same[i].defect.image, anywhere[i].defect.image) for i in range(len(same)))
    small = NSASettings(half_height=(0.03, 0.03), half_width=(0.03, 0.03), background=None)
    wordings = (Wording(), Wording(infos={"bottle": ClassInfo(nsa=small)}))
    usual, changed = (SimulatedPairs(train_records, transform, 0, wording=wording) for wording in wordings)
    assert not torch.equal(usual[0].defect.image, changed[0].defect.image)
    assert torch.equal(usual[3].defect.image, changed[3].defect.image), "a screw"


@pytest.mark.parametrize("source", ["same", "any"])
@pytest.mark.parametrize("drawn_share", [0.0, 0.5])
def test_mask_positions_and_sentence_agree_over_many_draws(train_records, transform, source, drawn_share):
    """What the model is shown, what it has to mark and what it has to say are one thing: 4 x 600 pairs."""
    dataset = SimulatedPairs(train_records, transform, 5, source, drawn_share, Wording(follow_up=False))
    told = Counter()
    for epoch in range(600 // len(dataset)):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            pair = dataset[index]
            target = pair.defect.mask[0].numpy() > 0
            answer = pair.defect.turns[1].text
            places = PLACE.findall(answer.partition("image, ")[2])
            assert parse_verdict(answer) is pair.defect.is_anomalous is bool(target.any())
            assert pair.defect.image.shape == (3, 64, 64) and set(np.unique(pair.defect.mask)) <= {0, 1}
            assert bool(places) == target.any()
            changed = (pair.defect.image != pair.normal.image).any(dim=0).numpy()
            assert not (target & ~cv2.dilate(changed.astype(np.uint8), np.ones((13, 13))).astype(bool)).any()
            found = positions_of(target)
            if len(found) == 1 and len(places) == 1:
                assert places == list(found), answer
            told.update(places)
            assert changed.any() == target.any()
            assert parse_verdict(pair.normal.turns[1].text) is False
            assert not pair.normal.is_anomalous and not pair.normal.mask.any()
    assert len(told) == 9, "every cell of the grid comes up"


def test_a_photo_may_draw_its_language(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0, wording=Wording(languages=("en", "zh")))
    answers = {dataset[index].normal.turns[1].text[0] for index in range(len(dataset))}
    assert answers == {"N", "没"}


def texts(dataset, epochs):
    """Every question and answer about the defects."""
    found = set()
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found |= {turn.text for index in range(len(dataset)) for turn in dataset[index].defect.turns}
    return found


@pytest.mark.parametrize("drawn_share", [0.0, 1.0])
def test_the_kind_of_a_drawn_defect_is_asked_but_not_of_a_pasted_one(train_records, transform, drawn_share):
    said = texts(SimulatedPairs(train_records, transform, seed=0, drawn_share=drawn_share), epochs=30)
    assert ("What kind of defect is it?" in said) == ("There is a hole." in said) == bool(drawn_share)


def test_positions_come_from_every_mask_of_a_photo(all_records, transform):
    [index] = [at for at, record in enumerate(all_records) if record.defect == "logical_anomalies"]
    assert SupervisedPairs(all_records, transform, seed=0)._real_sample(index).turns[1].text == (
        "Yes, there are 2 anomalies in the image, they are at the bottom right and the top left of the image."
    )


def test_a_defect_too_thin_for_the_threshold_is_not_denied(mvtec_tree, transform):
    records = index_tree(mvtec_tree, ["screw"])
    pairs = SupervisedPairs(records, transform, seed=0)
    thin = Image.new("L", (640, 640), 0)
    thin.paste(255, (100, 0, 102, 640))
    [[mask]] = [record.masks for record in records if record.is_anomalous]
    thin.save(mask)
    sample = pairs[0].defect
    assert sample.is_anomalous and 0 < sample.mask.mean() < 0.05
    Image.new("L", (640, 640), 0).save(mask)
    with pytest.raises(DatasetError, match=r"000_mask\.png: marks nothing"):
        pairs[0]


def test_the_kind_of_defect_is_told_when_asked(mvtec_tree, transform):
    records = [replace(r, defect="scratch_head") if r.masks else r for r in index_tree(mvtec_tree, ["screw"])]
    assert "The head of the screw is scratched." in texts(SupervisedPairs(records, transform, seed=0), epochs=40)


def test_a_pair_is_of_one_class_where_the_class_has_normal_photos(all_records, transform):
    pairs = SupervisedPairs([r for r in all_records if r.split == "train" or r.masks], transform, seed=0)
    assert len(pairs) == sum(record.is_anomalous for record in all_records)
    for pair in (pairs[index] for index in range(len(pairs))):
        for sample, anomalous in ((pair.normal, False), (pair.defect, True)):
            assert sample.is_anomalous == bool(sample.mask.any()) == parse_verdict(sample.turns[1].text) == anomalous
        road = pair.defect.class_name == "pavement"
        assert (pair.normal.class_name == pair.defect.class_name) is not road
        assert (pair.reference is None) is road
        assert road or not torch.equal(pair.reference, pair.normal.image)


def test_unmarked_defects_and_missing_photos_are_errors(mvtec_tree, transform):
    unmarked = [replace(record, masks=()) for record in index_tree(mvtec_tree)]
    with pytest.raises(DatasetError, match=r"crack.000\.png: has no mask"):
        SupervisedPairs(unmarked, transform, seed=0)[0]
    good = [record for record in unmarked if not record.is_anomalous]
    with pytest.raises(DatasetError, match="0 defects with a mask and 8 normal photos; pairs need both"):
        SupervisedPairs(good, transform, seed=0)
