"""The table of weights."""

import re
from pathlib import Path

import pytest

from anomalygpt.weights.convert import CONVERTERS
from anomalygpt.weights.sources import HubSource, WheelSource, load_sources


def test_shipped_table_asks_the_hub_first_and_pins_every_wheel() -> None:
    for weight in load_sources().values():
        first, *others = weight.sources
        assert isinstance(first, HubSource)
        assert set(weight.files) <= set(first.files)
        for source in others:
            assert isinstance(source, WheelSource)
            assert re.fullmatch("[0-9a-f]{64}", source.sha256)
            assert re.fullmatch("[0-9a-f]{64}", source.member_sha256)
            assert source.converter in CONVERTERS


def test_shipped_table_says_whose_each_weight_is() -> None:
    for weight in load_sources().values():
        assert weight.licence == "Apache-2.0"
        assert weight.origin


def test_unknown_field_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    table = tmp_path / "sources.yaml"
    table.write_text("one: {title: One, licence: MIT, origin: me, path: one, files: [a], colour: red}\n")
    with pytest.raises(ValueError, match="(?s)'one'.*colour.*licence"):
        load_sources(table)
