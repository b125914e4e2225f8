"""Options of the command line by which verdicts learn from photos, and photos judge each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from anomalygpt.predict import main


@pytest.mark.weights
def test_good_and_bad_photos_count_are_saved_and_forgotten(
    photo, compact_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(6):
        photo(seed=seed).save(tmp_path / f"{seed}.png")
    file, options = tmp_path / "part.safetensors", ["--config", "compact", "--device", "cpu", "--no-chat", "--json"]

    def call(*arguments: object) -> dict[str, dict[str, Any]]:
        assert main([*map(str, arguments), *options, "--set", "seed=1", *compact_overrides]) == 0
        found = map(json.loads, capsys.readouterr().out.splitlines())
        return {Path(result["photo"]).name: result for result in found}

    query = tmp_path / "5.png"
    before = call(query, "--reference", tmp_path / "0.png", tmp_path / "1.png", "--save-references", file)["5.png"]
    labels = ["--good", tmp_path / "2.png", "--bad", tmp_path / "3.png"]
    after = call(query, "--references", file, *labels, "--save-references", file)["5.png"]
    assert after["score"] == before["score"]
    assert after["probability"] != before["probability"]
    assert call(query, "--references", file)["5.png"]["probability"] == after["probability"]
    forgotten = call(tmp_path / "4.png", query, "--references", file, "--forget", "--adapt")
    assert forgotten["5.png"]["probability"] != before["probability"], "the photo before it counts"
    assert call(query, "--references", file, "--forget")["5.png"]["probability"] == before["probability"]
    many = call(*(tmp_path / f"{seed}.png" for seed in range(6)), "--unlabelled")
    assert len(many) == 6
    assert {result["reason"] for result in many.values()} == {""}


@pytest.mark.parametrize("option", ["--good", "--unlabelled", "--adapt"])
def test_options_that_do_not_fit(
    option: str, photo, compact_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo().save(tmp_path / "0.png")
    values = {"--good": [str(tmp_path)], "--unlabelled": ["--reference", str(tmp_path)], "--adapt": []}[option]
    arguments = [str(tmp_path), option, *values, "--no-chat", "--config", "compact", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--set", "seed=1", *compact_overrides])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert "references" in error and "Traceback" not in error
