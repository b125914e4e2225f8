"""Which photos are references, round by round, and which cells a plan has."""

import pytest

from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import UserError
from anomalygpt.evaluation.cells import Cell, Plan, photo_name


def references(records: list[ImageRecord], shots: int, round_: int = 0, **choice: object) -> list[ImageRecord]:
    return Plan((shots,), **choice).references(records, Cell(shots, round_, "bottle"))


def random_references(records: list[ImageRecord], shots: int, round_: int, seed: int) -> list[ImageRecord]:
    return references(records, shots, round_, choice="random", seed=seed)


def numbers(records: list[ImageRecord]) -> list[int]:
    return [int(record.image.stem) for record in records]


@pytest.mark.parametrize(
    ("shots", "round_", "expected"),
    [(0, 0, []), (1, 0, [0]), (4, 0, [0, 1, 2, 3]), (1, 1, [4])]
    + [(2, 2, [8, 9]), (4, 1, [4, 5, 6, 7]), (5, 1, [5, 6, 7, 8, 9])],
)
def test_a_round_starts_four_good_photos_further_on(tree, shots, round_, expected):
    chosen = references(index_tree(tree)[::-1], shots, round_)
    assert numbers(chosen) == expected
    assert all(record.split == "train" and not record.is_anomalous for record in chosen)


def test_too_few_photos_are_reported(tree):
    with pytest.raises(UserError, match="need 12 good training photos, there are 10"):
        references(index_tree(tree), 4, 2)
    with pytest.raises(UserError, match="need 11 good training photos, there are 10"):
        random_references(index_tree(tree), 11, 0, seed=0)
    tested = [record for record in index_tree(tree) if record.split == "test"]
    Plan((0,)).check(tested)
    with pytest.raises(UserError, match="there are 0; --shots 0 needs none"):
        Plan((1,)).check(tested)
    with pytest.raises(UserError, match="no test photos of bottle"):
        Plan((0,)).check([record for record in index_tree(tree) if record.split == "train"])


def test_random_references_differ_between_rounds_and_seeds_and_are_drawn_again_the_same(tree):
    records = index_tree(tree)
    keys = [(round_, seed) for round_ in range(4) for seed in (0, 1)]
    drawn = {key: tuple(numbers(random_references(records, 4, *key))) for key in keys}
    assert len(set(drawn.values())) == 8
    assert all(len(set(chosen)) == 4 and list(chosen) == sorted(chosen) for chosen in drawn.values())
    assert tuple(numbers(random_references(records[::-1], 4, 2, 1))) == drawn[2, 1]


def test_a_plan_goes_round_after_round_and_measures_zero_shot_once():
    records = [ImageRecord(None, name, "test", False, "good", None) for name in "bab"]
    cells = Plan((0, 2), 2).cells(records)
    assert cells == [Cell(*key, name) for key in ((0, 0), (2, 0), (2, 1)) for name in "ab"]


def test_each_photo_round_and_seed_has_its_own_seed(tree):
    cell = Cell(2, 0, "bottle")
    photos = (cell, 42, "a.png"), (cell, 42, "b.png"), (cell, 43, "a.png"), (Cell(2, 1, "bottle"), 42, "a.png")
    assert len({Cell.seed_of(*photo) for photo in photos}) == 4
    assert photo_name(index_tree(tree)[0], tree) == "bottle/train/good/000.png"
