"""The table of weights."""

import re
from pathlib import Path

import pytest

from anomalygpt.errors import UserError
from anomalygpt.weights.convert import CONVERTERS
from anomalygpt.weights.sources import load_sources


def test_shipped_table_asks_the_hub_first_pins_every_wheel_and_names_authors_and_licence() -> None:
    for weight in load_sources().values():
        first, *others = weight.sources
        assert first.hub
        assert set(weight.files) <= set(first.files)
        for source in others:
            assert source.wheel
            assert re.fullmatch("[0-9a-f]{64}", source.sha256)
            assert re.fullmatch("[0-9a-f]{64}", source.member_sha256)
            assert source.converter in CONVERTERS
        assert weight.licence == "Apache-2.0"
        assert weight.origin


ENTRY = "title: One, licence: MIT, origin: me, path: one, files: [a]"
WHEEL = "wheel: w, sha256: x, member: m, member_sha256: y"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read (No such file"),
        (b"a: [1", "not valid YAML"),
        (b"just words", "Input should be a valid dictionary (got 'just words')"),
        (b"1: {}", "1.[key]: Input should be a valid string (got 1)"),
        (b"one: {title: One, licence: MIT}", "one.origin: Field required"),
        (f"one: {{{ENTRY}, colour: red}}".encode(), "one: unknown key 'colour'; expected one of title, licence, "),
        (f"one: {{{ENTRY}, sources: [here]}}".encode(), "one.sources.0: Input should be a valid dictionary"),
        (
            f"one: {{{ENTRY}, sources: [{{{WHEEL}}}]}}".encode(),
            "one.sources.0: expected hub and files, or wheel, version",
        ),
        (
            f"one: {{{ENTRY}, sources: [{{hub: h}}]}}".encode(),
            "one.sources.0: expected hub and files, or wheel, version",
        ),
        (f"one: {{{ENTRY.replace('[a]', 'a')}}}".encode(), "one.files: Input should be a valid tuple"),
    ],
)
def test_mistake_in_a_table_is_reported_in_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    table = tmp_path / "sources.yaml"
    if content is not None:
        table.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_sources(table)
    text = str(error.value)
    assert text.startswith(f"{table}: ") and words in text and "\n" not in text
