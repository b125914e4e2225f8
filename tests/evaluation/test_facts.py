"""What makes two runs one, and what their report says of it."""

from pathlib import Path

import pytest

from anomalygpt.config.load import load_config
from anomalygpt.evaluation.facts import (
    data_fingerprint,
    defects_in_words,
    fingerprint,
    maps_in_words,
    references_in_words,
)
from anomalygpt.evaluation.measured import Setting
from anomalygpt.evaluation.protocol import Plan


def prints(*overrides: str, chat: bool = True, device: str = "cpu") -> dict:
    return fingerprint(load_config("compact", overrides), chat=chat, device=device)


def changed(one: dict, other: dict) -> set[str]:
    return {key for key in {**one, **other} if one.get(key) != other.get(key)}


def test_a_setting_that_changes_numbers_changes_the_fingerprint_by_its_name():
    base = prints()
    assert changed(base, prints("inference.map_threshold=0.4")) == {"inference.map_threshold"}
    assert changed(base, prints("llm.generation.top_p=0.5")) == {"llm.generation.top_p"}
    assert changed(base, prints(device="cuda:1")) == {"device"}
    assert prints(device="cuda:1") == prints(device="cuda:0")
    assert "chat" in changed(base, prints(chat=False))


def test_settings_of_training_and_of_a_silent_language_model_change_nothing():
    assert prints("training.optimizer.lr=1", "data.workers=1", "name=other") == prints()
    assert prints("llm.generation.top_p=0.5", chat=False) == prints(chat=False)


def test_a_delta_of_the_same_name_and_other_contents_is_another(tmp_path):
    delta = tmp_path / "delta.pt"
    found = []
    for contents in (b"one", b"two", b"one"):
        delta.write_bytes(contents)
        found.append(prints(f"deltas=[{{path: {delta}, parts: [states]}}]"))
    assert found[0] == found[2] and changed(found[0], found[1]) == {f"contents of {delta}"}


def test_more_shots_and_rounds_belong_to_the_same_run():
    one, more = Plan((1,)), Plan((1, 2), (0, 1))
    assert data_fingerprint("mvtec", Path("x"), "map", one) == data_fingerprint("mvtec", Path("x"), "map", more)
    other = Plan((1,), choice="random")
    assert data_fingerprint("mvtec", Path("x"), "map", one) != data_fingerprint("mvtec", Path("x"), "map", other)


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


def test_each_way_that_maps_and_masks_met_is_said_once():
    squash, photo = Setting("squash", 224, "as_seen", False), Setting("crop", 224, "photo", True)
    lines = maps_in_words([squash, photo, squash, None])
    assert len(lines) == 2 and "squash, measured at 224 x 224; mask resized" in lines[0]
    assert "the photo's own pixels" in lines[1] and "measured at" not in lines[1]
    assert "saturat" in defects_in_words([squash, photo]) and "saturat" not in defects_in_words([squash])
