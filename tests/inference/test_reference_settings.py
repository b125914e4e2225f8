"""The options and the presets."""

import dataclasses

import pytest
from pydantic import ValidationError

from anomalygpt.config.schema import ReferencesConfig
from anomalygpt.inference.reference_settings import OFFICIAL, PRESETS, ReferenceSettings, reference_settings


def test_official_is_the_papers_behaviour() -> None:
    assert reference_settings(ReferencesConfig()) == OFFICIAL == ReferenceSettings()


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_what_its_name_stands_for(name) -> None:
    assert reference_settings(ReferencesConfig(preset=name)) == PRESETS[name]


def test_every_setting_can_be_named_in_a_config() -> None:
    names = {field.name for field in dataclasses.fields(ReferenceSettings)}
    assert set(ReferencesConfig.model_fields) == names | {"preset"}


def test_what_a_config_names_goes_before_its_preset() -> None:
    found = reference_settings(ReferencesConfig(preset="best", smoothing=2.0, scales=(1,), scale_weights=()))
    assert (found.smoothing, found.scales, found.scale_weights) == (2.0, (1,), ())
    assert found.top_share == PRESETS["best"].top_share


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smoothing": 1.0}, "takes no other setting, but smoothing is set: name 'custom'"),
        ({"preset": "custom", "neighbourhood": 2}, "expected an odd number"),
        ({"preset": "custom", "scales": ()}, "at least 1"),
        ({"preset": "custom", "scales": (1, 2, 1)}, "expected each once"),
        ({"preset": "custom", "text_weight": 1.5}, "less than or equal to 1"),
        ({"preset": "custom", "augmentation": "turns"}, "'none', 'rotations', 'flips' or 'auto'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ReferencesConfig(**settings)
