"""Which photos are references, round by round, and which cells a plan has."""

import dataclasses

import pytest

from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.errors import UserError
from anomalygpt.evaluation.protocol import (
    Cell,
    Plan,
    check,
    photo_name,
    photo_seed,
    reference_records,
)


def random_references(records: list[ImageRecord], shots: int, round_: int, seed: int) -> list[ImageRecord]:
    return Plan((shots,), (round_,), "random", seed).references(records, Cell(shots, round_, "bottle"))


def numbers(records: list[ImageRecord]) -> list[int]:
    return [int(record.image.stem) for record in records]


@pytest.mark.parametrize(
    ("shots", "round_", "expected"),
    [
        (0, 0, []),
        (1, 0, [0]),
        (4, 0, [0, 1, 2, 3]),
        (1, 1, [4]),
        (2, 2, [8, 9]),
        (4, 1, [4, 5, 6, 7]),
        (5, 1, [5, 6, 7, 8, 9]),
    ],
)
def test_a_round_starts_four_good_photos_further_on(tree, shots, round_, expected):
    assert numbers(reference_records(index_mvtec(tree), shots, round_)) == expected


def test_references_are_sorted_good_training_photos_whatever_the_order_of_the_records(tree):
    chosen = reference_records(index_mvtec(tree)[::-1], 4)
    assert numbers(chosen) == [0, 1, 2, 3]
    assert all(record.split == "train" and not record.is_anomalous for record in chosen)


def test_too_few_good_photos_are_told(tree):
    with pytest.raises(UserError, match="need 12 good training photos, there are 10"):
        reference_records(index_mvtec(tree), 4, 2)
    with pytest.raises(UserError, match="need 11 good training photos, there are 10"):
        random_references(index_mvtec(tree), 11, 0, seed=0)


def test_photos_without_a_training_split_can_only_be_measured_without_references(tree):
    tested = [record for record in index_mvtec(tree) if record.split == "test"]
    check(Plan((0,)), tested)
    with pytest.raises(UserError, match="there are 0; photos without a training split .* --shots 0"):
        check(Plan((1,)), tested)


def test_random_references_differ_between_rounds_and_seeds_and_are_drawn_again_the_same(tree):
    records = index_mvtec(tree)
    drawn = {
        (round_, seed): tuple(numbers(random_references(records, 4, round_, seed)))
        for round_ in range(4)
        for seed in (0, 1)
    }
    assert len(set(drawn.values())) == 8
    assert all(len(set(chosen)) == 4 and list(chosen) == sorted(chosen) for chosen in drawn.values())
    assert tuple(numbers(random_references(records[::-1], 4, 2, 1))) == drawn[2, 1]


def test_each_good_photo_is_drawn_as_often_as_any_other(tree):
    records = index_mvtec(tree)
    drawn = [number for round_ in range(500) for number in numbers(random_references(records, 2, round_, 0))]
    assert all(60 < drawn.count(number) < 140 for number in range(10)), "100 each on average"


def test_a_plan_goes_round_after_round_and_measures_zero_shot_once():
    records = [ImageRecord(None, name, "test", False, "good", None) for name in "bab"]
    cells = Plan((0, 2), (3, 4)).cells(records)
    assert cells == [
        *(Cell(0, 0, name) for name in "ab"),
        *(Cell(2, round_, name) for round_ in (3, 4) for name in "ab"),
    ]


def test_a_class_without_test_photos_is_told_before_anything_is_measured(tree):
    records = [record for record in index_mvtec(tree) if record.split == "train"]
    with pytest.raises(UserError, match="no test photos of bottle"):
        check(Plan((0,)), records)


def test_each_photo_round_and_seed_has_a_seed_of_its_own(tree):
    cell = Cell(2, 0, "bottle")
    seeds = {
        photo_seed(42, cell, "a.png"),
        photo_seed(42, cell, "b.png"),
        photo_seed(43, cell, "a.png"),
        photo_seed(42, dataclasses.replace(cell, round=1), "a.png"),
    }
    assert len(seeds) == 4
    record = index_mvtec(tree)[0]
    assert photo_name(record, tree) == "bottle/train/good/000.png"
