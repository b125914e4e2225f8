"""How references are compared: the options and the presets."""

import pytest
from pydantic import ValidationError

from anomalygpt.config.settings import REFERENCE_PRESETS, ReferenceSettings

PAPER = {
    "augmentation": "none", "scales": (1,), "scale_weights": (), "tap_weights": (), "interpolation": "aligned",
    "smoothing": 0, "top_share": 0, "contrast": 0, "text_weight": 0, "text_trusted_below": 1,
    "camera_copies": False,
}  # fmt: skip


def test_values_of_the_presets() -> None:
    presets = {name: ReferenceSettings(preset=name) for name in REFERENCE_PRESETS}  # type: ignore[arg-type]
    assert all(ReferenceSettings.model_validate(p.model_dump(mode="json")) == p for p in presets.values())
    assert ReferenceSettings().options == presets["official"].options == presets["custom"].options == PAPER
    fast, best = presets["fast"], presets["best"]
    assert (fast.augmentation, fast.tap_weights, fast.interpolation) == ("auto", (1, 1, 2, 2), "centred")
    assert (fast.scales, fast.smoothing, fast.top_share) == ((1,), 0.3, 0.003)
    assert best.options == fast.options | {"camera_copies": False, "scales": (1, 2), "scale_weights": (1, 2)}


def test_preset_is_known_again_whatever_the_text_map_weighs() -> None:
    for preset in ("fast", "best"):
        assert ReferenceSettings(preset=preset, text_weight=0.3).unchanged_preset == preset  # type: ignore[arg-type]
    assert ReferenceSettings(preset="fast", smoothing=1.0).unchanged_preset is None


def test_what_is_named_goes_before_the_preset_and_none_does_not() -> None:
    found = ReferenceSettings(preset="best", smoothing=2.0, scales=(1,), scale_weights=(), top_share=None)  # type: ignore[arg-type]
    assert (found.smoothing, found.scales, found.scale_weights) == (2.0, (1,), ())
    assert found.top_share == REFERENCE_PRESETS["best"]["top_share"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smoothing": 1.0}, "takes no other setting, but smoothing is set: name 'custom'"),
        ({"preset": "custom", "neighbourhood": 3}, "unknown key 'neighbourhood'"),
        ({"preset": "custom", "scales": ()}, "at least 1"),
        ({"preset": "custom", "text_weight": 1.5}, "less than or equal to 1"),
        ({"preset": "custom", "augmentation": "turns"}, "'none', 'rotations' or 'auto'"),
        ({"preset": ["best"]}, "'official', 'best', 'fast' or 'custom'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ReferenceSettings(**settings)
