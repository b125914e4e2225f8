"""Training pairs: agreement, determinism, memory, batches, the split."""

import multiprocessing
import re
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from anomalygpt.datasets.dialogue import parse_verdict, positions_of
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.sample import SamplePair, collate_pairs
from anomalygpt.datasets.simulated import PhotoCache, SimulatedPairs, holdout, normal_split
from anomalygpt.datasets.wording import Wording


@pytest.fixture
def train_records(mvtec_tree):
    return [record for record in index_mvtec(mvtec_tree) if record.split == "train"]


def batches(dataset, workers):
    return list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate_pairs))


def assert_same(first, second):
    assert torch.equal(first.images, second.images) and torch.equal(first.masks, second.masks)
    assert torch.equal(first.references, second.references)
    assert first.conversations == second.conversations and first.class_names == second.class_names


def test_a_pair_is_one_photo_without_and_with_a_defect(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0)
    for index in range(len(dataset)):
        pair = dataset[index]
        assert pair.normal.image.shape == pair.reference.shape == (3, 64, 64)
        assert not pair.normal.is_anomalous and not pair.normal.mask.any()
        assert set(pair.defect.mask.unique().tolist()) <= {0.0, 1.0}
        assert pair.defect.is_anomalous == bool(pair.defect.mask.any())
        assert (pair.normal.image != pair.defect.image).any() == pair.defect.is_anomalous
        for sample in (pair.normal, pair.defect):
            assert parse_verdict(sample.turns[1].text) is sample.is_anomalous


def test_pairs_do_not_depend_on_the_number_of_workers(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=3)
    for alone, shared in zip(batches(dataset, 0), batches(dataset, 2), strict=True):
        assert_same(alone, shared)


def test_running_workers_follow_the_epoch(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=3)
    loader = DataLoader(dataset, 2, num_workers=1, collate_fn=collate_pairs, persistent_workers=True)
    first = list(loader)
    dataset.set_epoch(1)
    second = list(loader)
    assert not torch.equal(first[0].images, second[0].images)
    for seen, expected in zip(second, batches(dataset, 0), strict=True):
        assert_same(seen, expected)


def test_seed_and_epoch_change_the_defects(train_records, transform):
    one, other = (SimulatedPairs(train_records, transform, seed=seed) for seed in (0, 1))
    assert not torch.equal(one[0].defect.image, other[0].defect.image)
    before = one[0].defect.image
    one.set_epoch(1)
    assert not torch.equal(before, one[0].defect.image)
    one.set_epoch(0)
    assert torch.equal(before, one[0].defect.image)


def test_the_reference_is_another_photo_of_the_class(train_records, transform):
    photos = PhotoCache(transform, [record.image for record in train_records], 1 << 30)
    dataset = SimulatedPairs(train_records, transform, seed=0)
    for index, record in enumerate(train_records):
        others = [r for r in train_records if r.class_name == record.class_name and r != record]
        candidates = [transform.normalise(photos.pixels(other.image)) for other in others]
        assert any(torch.equal(dataset[index].reference, candidate) for candidate in candidates)


def test_a_single_photo_is_its_own_reference(train_records, transform):
    pair = SimulatedPairs(train_records[:1], transform, seed=0)[0]
    assert torch.equal(pair.reference, pair.normal.image)


def test_conversations_can_be_the_papers(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0, wording=Wording(vary=False))
    for index in range(len(dataset)):
        question, _ = dataset[index].defect.turns
        assert question.text.startswith("This is a photo of a ")
        assert question.text.endswith("Is there any anomaly in the image?")


def test_patches_may_come_from_any_class(train_records, transform):
    same, anywhere = (SimulatedPairs(train_records, transform, 0, source) for source in ("same", "any"))
    assert any(not torch.equal(same[i].defect.image, anywhere[i].defect.image) for i in range(len(same)))


def test_only_normal_training_photos_are_taken(mvtec_tree, transform):
    with pytest.raises(DatasetError, match=r"4 records are not normal training photos: .*and 1 more"):
        SimulatedPairs(index_mvtec(mvtec_tree), transform, seed=0)
    with pytest.raises(DatasetError, match="no records"):
        SimulatedPairs([], transform, seed=0)


def test_an_unreadable_photo_is_named(train_records, transform):
    train_records[0].image.write_text("no image")
    with pytest.raises(DatasetError, match=r"bottle.train.good.000\.png: cannot be read"):
        SimulatedPairs(train_records[:1], transform, seed=0)[0]


def test_the_cache_keeps_to_its_budget_and_shows_the_same_photos(train_records, transform):
    one_photo = 64 * 64 * 3
    files = [record.image for record in train_records]
    none, some, every = (PhotoCache(transform, files, count * one_photo) for count in (0, 2, len(files)))
    for _ in range(2):
        for file in files:
            assert np.array_equal(some.pixels(file), none.pixels(file))
            assert np.array_equal(every.pixels(file), none.pixels(file))
    assert [cache.used // one_photo for cache in (none, some, every)] == [0, 2, len(files)]


def test_a_photo_in_the_cache_cant_be_painted_over(train_records, transform):
    file = train_records[0].image
    for budget in (0, 1 << 20):
        with pytest.raises(ValueError, match="read-only"):
            PhotoCache(transform, [file], budget).pixels(file)[:] = 0


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_all_workers_fill_one_cache_between_them(train_records, transform, method):
    """A photo that one worker has decoded is there for every other, and after the workers have gone."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this machine")
    dataset = SimulatedPairs(train_records, transform, seed=3)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=collate_pairs, multiprocessing_context=method)
    for alone, shared in zip(batches(SimulatedPairs(train_records, transform, seed=3), 0), loader, strict=True):
        assert_same(alone, shared)
    assert dataset._photos.used == (len(train_records) * 64 * 64 * 3 if method == "fork" else 0)


PLACE = re.compile(r"the (top left|top right|bottom left|bottom right|top|bottom|left|right|center)\b")


@pytest.mark.parametrize("source", ["same", "any"])
@pytest.mark.parametrize("drawn_share", [0.0, 0.5])
def test_mask_positions_and_sentence_of_a_pair_agree_over_thousands_of_draws(
    train_records, transform, source, drawn_share
):
    """What the model is shown, what it has to mark and what it has to say are one thing: 4 x 600 pairs."""
    wording = Wording(vary=False, follow_up=False)
    dataset = SimulatedPairs(train_records, transform, 5, source, drawn_share, wording)
    told = Counter()
    for epoch in range(600 // len(dataset)):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            pair = dataset[index]
            target = pair.defect.mask[0].numpy() > 0
            answer = pair.defect.turns[1].text
            places = PLACE.findall(answer.partition("image, ")[2])
            assert parse_verdict(answer) is pair.defect.is_anomalous is bool(target.any())
            assert bool(places) == target.any()
            changed = (pair.defect.image != pair.normal.image).any(dim=0).numpy()
            assert not (target & ~cv2.dilate(changed.astype(np.uint8), np.ones((13, 13))).astype(bool)).any()
            found = positions_of(target)
            if len(found) == 1 and len(places) == 1:
                assert places == list(found), answer
            told.update(places)
            assert parse_verdict(pair.normal.turns[1].text) is False
            assert not pair.normal.mask.any()
    assert len(told) == 9, "every cell of the grid comes up"


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


def test_a_batch_has_references_when_every_pair_has_one(train_records, transform):
    pair = SimulatedPairs(train_records, transform, seed=0)[0]
    bare = SamplePair(pair.normal, pair.defect, None)
    assert collate_pairs([pair, pair]).references is not None
    assert collate_pairs([bare, bare]).references is None
    assert collate_pairs([pair, bare]).references is None


def test_a_photo_may_draw_its_language(train_records, transform):
    dataset = SimulatedPairs(train_records, transform, seed=0, wording=Wording(languages=("en", "zh")))
    answers = {turns[1].text[0] for index in range(len(dataset)) for turns in (dataset[index].normal.turns,)}
    assert answers == {"N", "没"}


def test_a_classs_own_validation_photos_are_validated_on(train_records):
    own = [replace(r, split="validation") for r in train_records if r.class_name == "screw"][:1]
    train, validation = normal_split([*train_records, *own], 0.34, seed=0)
    assert [r.class_name for r in train] == ["bottle", "bottle", "screw", "screw", "screw"]
    assert [(r.class_name, r.split) for r in validation] == [("bottle", "train"), ("screw", "validation")]
    assert normal_split([*train_records, *own], 0, seed=0) == (train_records, [])


def test_holdout_divides_each_class_and_loses_no_photo(mvtec_tree, train_records):
    everything = index_mvtec(mvtec_tree)
    train, validation = holdout(everything, 0.34, seed=0)
    assert [r.class_name for r in validation] == ["bottle", "screw"]
    assert sorted([*train, *validation], key=lambda r: r.image) == train_records
    shuffled = [everything[i] for i in np.random.default_rng(0).permutation(len(everything))]
    assert holdout(shuffled, 0.34, seed=0) == (train, validation)
    assert holdout(everything, 0, seed=0) == (train_records, [])
    with pytest.raises(ValueError, match="fraction 1"):
        holdout(everything, 1, seed=0)


@pytest.mark.data
def test_real_pairs_nearly_always_show_a_defect(real_photos, transform):
    records = [r for r in index_mvtec(real_photos) if r.split == "train"][::20]
    dataset = SimulatedPairs(records, transform, seed=0)
    pairs = [dataset[index] for index in range(len(dataset))]
    assert sum(pair.defect.is_anomalous for pair in pairs) >= 0.95 * len(pairs)


@pytest.mark.parametrize("drawn_share", [0.0, 1.0])
def test_the_kind_of_a_drawn_defect_is_asked_but_not_of_a_pasted_one(train_records, transform, drawn_share):
    dataset = SimulatedPairs(train_records, transform, seed=0, drawn_share=drawn_share)
    said = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        said |= {turn.text for index in range(len(dataset)) for turn in dataset[index].defect.turns}
    assert ("What kind of defect is it?" in said) == ("There is a hole." in said) == bool(drawn_share)
