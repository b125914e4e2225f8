"""Which runs have equal settings, and the provenance in words."""

import pytest
import torch
import yaml

from anomalygpt.config.load import load_config
from anomalygpt.distributed import Process
from anomalygpt.evaluation.cells import Plan
from anomalygpt.evaluation.tables import facts_of, fingerprint
from anomalygpt.model.checkpoint import save_tensors


def prints(*overrides: str, with_llm: bool = True) -> dict:
    return fingerprint(load_config("compact", overrides), with_llm)


def changed(one: dict, other: dict) -> set[str]:
    return {key for key in {**one, **other} if one.get(key) != other.get(key)}


def test_a_setting_that_changes_numbers_changes_the_fingerprint_by_its_name():
    base = prints()
    assert changed(base, prints("inference.map_threshold=0.4")) == {"inference.map_threshold"}
    assert changed(base, prints("llm.generation.top_p=0.5")) == {"llm.generation.top_p"}
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
    assert words in str(plan)


def config_of(tmp_path, root, *, defects="simulated", classes=None, metadata=True):
    """An experiment with a delta that was trained on a tree."""
    data = {"sources": [{"kind": "mvtec", "root": str(root), "classes": classes}], "defects": defects}
    delta = tmp_path / "delta.safetensors"
    about = {"config": yaml.safe_dump({"name": "x", "data": data})} if metadata else None
    save_tensors({"a": torch.zeros(1)}, delta, about)
    return load_config("compact", [f"deltas=[{{path: {delta}, parts: [states]}}]"])


def trained_on(config, *measured) -> str:
    process = Process(0, 1, torch.device("cpu"))
    cells = [{"seconds": 1, "names": ["a.png"], "class": name} for name in measured]
    [line] = facts_of(config, "", process, cells)["trained on"]
    return line.partition("delta.safetensors: ")[2]


def test_a_delta_says_what_it_was_trained_on(tmp_path, tree):
    known = config_of(tmp_path, tree, classes=["bottle"])
    assert trained_on(known, "screw") == f"simulated defects on {tree} (mvtec, bottle)"
    unknown = config_of(tmp_path, tree, metadata=False)
    assert trained_on(unknown, "bottle") == "its file names no photos"


@pytest.mark.parametrize(
    ("root", "classes", "shared"),
    [
        ("tree", None, "bottle"),  # of the folder's own classes
        ("gone", None, ""),  # a folder that is not here
        ("gone", ["screw", "bottle", "cable"], "bottle, screw"),
    ],
)
@pytest.mark.usefixtures("tree")
def test_measured_classes_that_a_delta_was_trained_on_are_named(tmp_path, root, classes, shared):
    line = trained_on(config_of(tmp_path, tmp_path / root, classes=classes), "bottle", "screw")
    assert line.partition("not a test on unseen classes: ")[2] == shared
