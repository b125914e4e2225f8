"""What is trained on, and what is held back to validate on."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from anomalygpt.datasets.build import normal_split, supervised_split
from anomalygpt.datasets.csv_table import index_visa
from anomalygpt.datasets.layouts import index_crack_forest
from anomalygpt.datasets.tree import index_tree


@pytest.fixture
def records(mvtec_tree):
    return index_tree(mvtec_tree)


def test_each_class_is_divided_and_no_photo_is_lost(records):
    train_records = [record for record in records if record.split == "train"]
    train, validation = normal_split(records, 0.34, seed=0)
    assert [r.class_name for r in validation] == ["bottle", "screw"]
    assert sorted([*train, *validation], key=lambda r: r.image) == train_records
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(len(records))]
    assert normal_split(shuffled, 0.34, seed=0) == (train, validation)
    assert normal_split(records, 0, seed=0) == (train_records, [])


def test_a_classs_own_validation_photos_are_validated_on(records):
    train_records = [record for record in records if record.split == "train"]
    own = [replace(r, split="validation") for r in train_records if r.class_name == "bottle"][:1]
    train, validation = normal_split([*train_records, *own], 0.34, seed=0)
    assert [r.class_name for r in train] == ["screw", "screw", "bottle", "bottle", "bottle"]
    assert [(r.class_name, r.split) for r in validation] == [("screw", "train"), ("bottle", "validation")]
    train, validation = normal_split([*train_records, *own], 0, seed=0)
    assert sorted(train, key=lambda r: r.image) == train_records and validation == []


def test_normal_test_photos_stay_out_of_training_and_validation(records, visa_tree, loco_tree, crack_tree):
    records = [*records, *index_visa(visa_tree), *index_tree(loco_tree), *index_crack_forest(crack_tree)]
    train, validation = supervised_split(records, 0.5, seed=0)
    used = [*train, *validation]
    assert len({record.image for record in used}) == len(used)
    assert all(record.is_anomalous or record.split != "test" for record in used)
    assert {r.split for r in validation if r.class_name == "pushpins"} == {"validation"}, "one defect of each kind only"
    assert Counter(r.is_anomalous for r in validation if r.class_name == "pavement") == {True: 1}
    assert supervised_split(records, 0.5, seed=0) == (train, validation)
    assert supervised_split(records[::-1], 0.5, seed=0) == (train, validation)
    assert supervised_split(records, 0, seed=0)[1] == []
