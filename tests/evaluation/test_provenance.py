"""What makes two runs one, what their report says of it, and when a delta's training limits the numbers."""

import pytest
import torch
import yaml

from anomalygpt.config.load import load_config
from anomalygpt.evaluation.protocol import Plan
from anomalygpt.evaluation.provenance import (
    fingerprint,
    references_in_words,
    seen_in_training,
    trained_on,
    training_data,
)
from anomalygpt.model.checkpoint import save_tensors


def prints(*overrides: str, with_llm: bool = True, device: str = "cpu") -> dict:
    return fingerprint(load_config("compact", overrides), with_llm=with_llm, device=device)


def changed(one: dict, other: dict) -> set[str]:
    return {key for key in {**one, **other} if one.get(key) != other.get(key)}


def test_a_setting_that_changes_numbers_changes_the_fingerprint_by_its_name():
    base = prints()
    assert changed(base, prints("inference.map_threshold=0.4")) == {"inference.map_threshold"}
    assert changed(base, prints("llm.generation.top_p=0.5")) == {"llm.generation.top_p"}
    assert changed(base, prints(device="cuda")) == {"device"}
    assert "chat" in changed(base, prints(with_llm=False))


def test_settings_of_training_and_of_a_silent_language_model_change_nothing():
    assert prints("training.optimizer.lr=1", "data.workers=1", "name=other") == prints()
    assert prints("llm.generation.top_p=0.5", with_llm=False) == prints(with_llm=False)


def test_a_delta_of_the_same_name_and_other_contents_is_another(tmp_path):
    delta = tmp_path / "delta.pt"
    found = []
    for contents in (b"one", b"two", b"one"):
        delta.write_bytes(contents)
        found.append(prints(f"deltas=[{{path: {delta}, parts: [states]}}]"))
    assert found[0] == found[2] and changed(found[0], found[1]) == {f"contents of {delta}"}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan((0,)), "text map"),
        (Plan((4,)), "4 x round + k"),
        (Plan((8,)), "K x round + k for K > 4"),
        (Plan((4,), choice="random"), "at random"),
    ],
)
def test_the_choice_of_references_in_words(plan, words):
    assert words in references_in_words(plan)


def config_of(tmp_path, root, *, defects="simulated", classes=None, metadata=True):
    """An experiment with a delta that was trained on a tree."""
    data = {"sources": [{"kind": "mvtec", "root": str(root), "classes": classes}], "defects": defects}
    delta = tmp_path / "delta.safetensors"
    about = {"config": yaml.safe_dump({"name": "x", "data": data})} if metadata else None
    save_tensors({"a": torch.zeros(1)}, delta, about)
    return load_config("compact", [f"deltas=[{{path: {delta}, parts: [states]}}]"])


def test_a_delta_says_what_it_was_trained_on(tmp_path, tree):
    [(_, data)] = training_data(config_of(tmp_path, tree, classes=["bottle"]))
    assert trained_on(data) == f"simulated defects on {tree} (mvtec, bottle)"
    silent = training_data(config_of(tmp_path, tree, metadata=False))
    assert trained_on(silent[0][1]) == "not said in the file"
    assert seen_in_training(silent, tree, ["bottle"]) == []


def test_the_same_folder_and_classes_of_the_same_name_are_told_and_other_data_are_not(tmp_path, tree):
    same = training_data(config_of(tmp_path, tree))
    [told] = seen_in_training(same, tree, ["bottle"])
    assert "these very classes' good photos" in told and "no test on unseen classes" in told
    [told] = seen_in_training(same, tmp_path / "other", ["bottle", "screw"])
    assert "classes of the same names in other data" in told and told.count("bottle") == 1
    assert seen_in_training(same, tmp_path / "other", ["screw"]) == []


def test_training_on_real_defects_of_the_test_photos_is_told(tmp_path, tree):
    [told] = seen_in_training(training_data(config_of(tmp_path, tree, defects="real")), tree, ["bottle"])
    assert "say nothing of unseen photos" in told


def test_a_training_folder_that_is_gone_is_compared_by_its_path_alone(tmp_path):
    gone = training_data(config_of(tmp_path, tmp_path / "gone"))
    assert seen_in_training(gone, tmp_path / "other", ["bottle"]) == []
    assert len(seen_in_training(gone, tmp_path / "gone", ["bottle"])) == 1
