"""Which held-back pairs are measured."""

from anomalygpt.training.validation import evenly_chosen


def test_a_part_of_the_held_back_pairs_is_spread_over_all_classes():
    pairs = [name for name in ("bottle", "cable", "screw") for _ in range(10)]
    chosen = evenly_chosen(pairs, 6)
    assert [chosen[i] for i in range(len(chosen))] == ["bottle", "bottle", "cable", "cable", "screw", "screw"]


def test_all_are_measured_where_there_are_few():
    chosen = evenly_chosen(["a", "b"], 64)
    assert [chosen[i] for i in range(len(chosen))] == ["a", "b"]
