"""The table of weights."""

import re
from pathlib import Path

import pytest

from anomalygpt.errors import UserError
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


ENTRY = "title: One, licence: MIT, origin: me, path: one, files: [a]"
WHEEL = "wheel: w, sha256: x, member: m, member_sha256: y"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read (No such file"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not valid YAML"),
        (b"a: [1", "not valid YAML"),
        (b"just words", "not a table of weights"),
        (b"", "not a table of weights"),
        (b"1: {}", "not a table of weights"),
        (b"one: two", "weight 'one': expected title, "),
        (b"one: {title: One, licence: MIT}", "weight 'one': without origin, path, files; its keys are title, "),
        (f"one: {{{ENTRY}, sources: here}}".encode(), "sources: expected a list"),
        (f"one: {{{ENTRY}, sources: [here]}}".encode(), "weight 'one', source 1: expected wheel, "),
        (f"one: {{{ENTRY}, sources: [{{{WHEEL}}}]}}".encode(), "source 1: without version; its keys are wheel, "),
        (f"one: {{{ENTRY}, sources: [{{{WHEEL}, version: 1.10}}]}}".encode(), "version: expected text, in quotes"),
        (f"one: {{{ENTRY.replace('[a]', 'a')}}}".encode(), "files: expected a list"),
        (f"one: {{{ENTRY.replace('path: one', 'path: 3')}}}".encode(), "path: expected text"),
    ],
)
def test_file_that_is_no_table_of_weights_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    table = tmp_path / "sources.yaml"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_sources(table)
    text = str(error.value)
    assert isinstance(error.value, UserError)
    assert text.startswith(f"{table}: ") and words in text and "\n" not in text


def test_folder_in_place_of_the_table_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a folder"):
        load_sources(tmp_path)
