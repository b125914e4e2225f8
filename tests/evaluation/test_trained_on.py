"""What a delta says of its training, and when that limits the numbers."""

import torch
import yaml

from anomalygpt.config.load import load_config
from anomalygpt.evaluation.trained_on import seen_in_training, trainings
from anomalygpt.model.checkpoint import save_tensors


def config_of(tmp_path, root, *, defects="simulated", classes=None, metadata=True):
    """An experiment with a delta that was trained on a tree."""
    data = {"sources": [{"kind": "mvtec", "root": str(root), "classes": classes}], "defects": defects}
    delta = tmp_path / "delta.safetensors"
    about = {"config": yaml.safe_dump({"name": "x", "data": data})} if metadata else None
    save_tensors({"a": torch.zeros(1)}, delta, about)
    return load_config("compact", [f"deltas=[{{path: {delta}, parts: [states]}}]"])


def test_a_delta_says_what_it_was_trained_on(tmp_path, tree):
    [training] = trainings(config_of(tmp_path, tree, classes=["bottle"]))
    assert str(training).endswith(f"simulated defects on {tree} (mvtec, bottle)")
    [silent] = trainings(config_of(tmp_path, tree, metadata=False))
    assert silent.data is None and str(silent).endswith("not said in the file")
    assert seen_in_training([silent], tree, ["bottle"]) == []


def test_the_same_folder_and_classes_of_the_same_name_are_told_and_other_data_are_not(tmp_path, tree):
    same = trainings(config_of(tmp_path, tree))
    [told] = seen_in_training(same, tree, ["bottle"])
    assert "these very classes' good photos" in told and "no test on unseen classes" in told
    [told] = seen_in_training(same, tmp_path / "other", ["bottle", "screw"])
    assert "classes of the same names in other data" in told and told.count("bottle") == 1
    assert seen_in_training(same, tmp_path / "other", ["screw"]) == []


def test_training_on_real_defects_of_the_test_photos_is_told(tmp_path, tree):
    [told] = seen_in_training(trainings(config_of(tmp_path, tree, defects="real")), tree, ["bottle"])
    assert "say nothing of unseen photos" in told


def test_a_training_folder_that_is_gone_is_compared_by_its_path_alone(tmp_path):
    gone = trainings(config_of(tmp_path, tmp_path / "gone"))
    assert seen_in_training(gone, tmp_path / "other", ["bottle"]) == []
    assert len(seen_in_training(gone, tmp_path / "gone", ["bottle"])) == 1
