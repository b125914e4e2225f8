"""The command line that looks at photos."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalygpt.predict import InputError, as_text, expand, main, output_stems
from tests.shared_data import ROOT


@dataclass(frozen=True)
class Run:
    """One call: its exit code, what it printed, and the folder that it wrote to."""

    code: int
    out: str
    err: str
    folder: Path


def call(*arguments: object, folder: Path = Path()) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Run(code, out.getvalue(), err.getvalue(), folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo) -> Path:
    """Two good photos, a scratched one of another shape, one that is no photo, and a note beside them."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("good", "test"):
        (root / name).mkdir()
    for seed in range(2):
        photo((160, 120), seed=seed).save(root / "good" / f"{seed}.png")
    photo((160, 120), scratch=(0.75, 0.25), seed=9).save(root / "test" / "scratch.png")
    photo((160, 120), seed=5).save(root / "test" / "scratch.jpg")
    (root / "test" / "broken.png").write_bytes((root / "good" / "0.png").read_bytes()[:200])
    (root / "test" / "note.txt").write_text("not a photo")
    return root


@pytest.fixture(scope="module")
def silent_run(photos: Path, compact_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A folder with an unreadable photo in it, held against references, as JSON and as pictures."""
    out = tmp_path_factory.mktemp("out") / "new" / "folder"
    settings = ["--set", *compact_overrides] if compact_overrides else []
    arguments = [photos / "test", "--reference", photos / "good" / "*.png", "--json", "--no-chat", "--out", out]
    return call(*arguments, "--config", "compact", "--device", "cpu", *settings, folder=out)


def results(run: Run) -> dict[str, dict[str, Any]]:
    """Each line of the output, by its photo's name."""
    return {Path(result["photo"]).name: result for result in map(json.loads, run.out.splitlines())}


@pytest.mark.weights
def test_unreadable_photo_does_not_keep_the_others_from_being_answered(silent_run: Run) -> None:
    assert silent_run.code == 1
    assert sorted(results(silent_run)) == ["scratch.jpg", "scratch.png"]
    errors = [line for line in silent_run.err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert "broken.png" in errors[0]
    assert "Traceback" not in silent_run.err


@pytest.mark.weights
def test_json_tells_verdict_score_and_regions(silent_run: Run) -> None:
    found = results(silent_run)
    defect, good = found["scratch.png"], found["scratch.jpg"]
    assert (defect["is_anomalous"], defect["verdict_from"], defect["answer"]) == (True, "score", "")
    assert defect["score"] > defect["threshold"] > 0
    assert defect["probability"] > 0.5 > good["probability"]
    assert defect["regions"][0]["position"] == "top right"
    assert len(defect["regions"][0]["box"]) == 4
    assert good["score"] < defect["score"]


@pytest.mark.weights
def test_out_holds_an_overlay_and_a_float_map_of_the_photos_own_size(silent_run: Run) -> None:
    """Two photos that differ in their suffix alone do not overwrite each other."""
    found = results(silent_run)
    names = [result[kind] for result in found.values() for kind in ("overlay", "map")]
    assert sorted([*names, "results.json"]) == sorted(path.name for path in silent_run.folder.iterdir())
    for result in found.values():
        overlay, map_ = (Image.open(silent_run.folder / result[kind]) for kind in ("overlay", "map"))
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGB", (160, 120))
        assert (map_.format, map_.mode, map_.size) == ("TIFF", "F", (160, 120))
        assert float(np.asarray(map_).max()) == pytest.approx(result["score"], rel=0.2)
    assert json.loads((silent_run.folder / "results.json").read_text(encoding="utf-8")) == list(found.values())


@pytest.mark.weights
def test_photo_is_answered_in_words(photos: Path, compact_overrides: list[str]) -> None:
    quick = ["llm.generation.max_new_tokens=8", "llm.generation.temperature=0"]
    run = call(
        *(photos / "test" / "scratch.png", "--question", "Is the screw bent?", "--class-name", "screw"),
        *("--config", "compact", "--device", "cpu", "--set", *compact_overrides, *quick),
    )
    assert run.code == 0
    first = run.out.splitlines()[0]
    assert first.startswith(f"{photos / 'test' / 'scratch.png'}: ")
    assert "(probability " in first
    assert "says the " in first


@pytest.mark.weights
def test_references_are_remembered_once_and_used_from_their_file(
    silent_run: Run, photos: Path, compact_overrides: list[str], tmp_path: Path
) -> None:
    settings = ["--config", "compact", "--device", "cpu", *(["--set", *compact_overrides] if compact_overrides else [])]
    memory = tmp_path / "references" / "part.safetensors"
    kept = call("--reference", photos / "good" / "*.png", "--save-references", memory, *settings)
    assert (kept.code, kept.out) == (0, "")
    scratch = photos / "test" / "scratch.png"
    used = call(scratch, "--references", memory, "--json", "--no-chat", *settings)
    assert used.code == 0
    before, after = results(silent_run)["scratch.png"], results(used)["scratch.png"]
    for name in ("score", "threshold", "probability"):
        assert after[name] == pytest.approx(before[name], abs=1e-3)


def test_missing_photo_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "predict.py", str(tmp_path / "nowhere.png"), "--config", "compact"],
        cwd=ROOT / "code",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == [
        f"error: {tmp_path / 'nowhere.png'}: no photo there; expected an image file, a folder of images, or a pattern"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "compakt"], "no config 'compakt'"),
        (["--config", "compact", "--set", "llm.generation.top_q=1"], "did you mean 'top_p'?"),
        (["--config", "compact", "--reference", "{photos}/test/broken.png"], "cannot be read as an image"),
        (["--config", "compact", "--reference", "{photos}/none/*.png"], "no photo there"),
        (["--config", "compact", "--references", "{photos}/none.safetensors"], "none.safetensors: no such file"),
        (["--config", "compact", "--save-references", "{photos}/none.safetensors"], "needs good photos"),
        (["--config", "compact", "--out", "{photos}/test/note.txt"], "can't be made"),
        (["--config", "compact", "--device", "gpu"], "device 'gpu': not on this machine"),
        (["--config", "imagebind_vicuna7b", "--set", "deltas=[{{path: nowhere.pt, parts: [lora]}}]"], "nowhere.pt"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(photos: Path, arguments: list[str], words: str) -> None:
    run = call(photos / "good" / "0.png", *(argument.format(photos=photos) for argument in arguments))
    assert run.code == 2
    assert len(run.err.splitlines()) == 1
    assert run.err.startswith("error: ")
    assert words in run.err


def test_no_photo_at_all_is_one_line_and_exit_code_2() -> None:
    run = call("--config", "compact")
    assert run.code == 2
    assert run.err.splitlines() == [
        "error: no photo given; expected photos to look at, or --save-references FILE to remember good ones"
    ]


def test_text_tells_probability_and_who_decided() -> None:
    result = {
        "photo": "a.png",
        "is_anomalous": True,
        "verdict_from": "score",
        "answer": "Yes, at the top.",
        "answer_agrees": False,
        "probability": 0.9,
        "score": 0.5,
        "threshold": 0.3,
        "regions": [],
    }
    assert as_text(result).splitlines() == [
        "a.png: DEFECT, says the score (probability 0.900, score 0.500, threshold 0.300)",
        "  Yes, at the top.",
        "  The language model disagreed: its own first word contradicts the score",
    ]
    said = as_text(result | {"verdict_from": "answer", "is_anomalous": False, "answer": "No."}).splitlines()
    assert said[0].startswith("a.png: good, says the answer")
    assert said[2] == "  The score contradicts the answer: the map marks no region"


def test_folders_patterns_and_photos_are_taken_once_and_in_order(photos: Path) -> None:
    good = [photos / "good" / f"{number}.png" for number in range(2)]
    assert expand([str(good[1]), str(photos / "good"), str(photos / "**" / "1.png")]) == [good[1], good[0]]
    assert expand([str(photos / "test")]) == [photos / "test" / n for n in ("broken.png", "scratch.jpg", "scratch.png")]
    assert expand([]) == []


def test_pattern_that_matches_nothing_is_named(photos: Path) -> None:
    with pytest.raises(InputError, match=r"\*\.bmp: no photo there"):
        expand([str(photos / "*.bmp")])


def test_photo_whose_name_looks_like_a_pattern_is_found(photos: Path) -> None:
    odd = photos / "part [1].png"
    Image.new("RGB", (8, 8)).save(odd)
    assert expand([str(odd)]) == [odd]


def test_results_keep_apart_and_inside_their_folder() -> None:
    paths = [
        "a/test/crack/0.png",
        "a/test/good/0.png",
        "b/test/good/0.png",
        "b/test/good/0.jpg",
        "/0.png",
        "../../x.png",
    ]
    stems = output_stems([Path(path) for path in paths])
    assert list(stems.values()) == ["test_crack_0", "test_good_0", "test_good_0~2", "test_good_0~3", "0", "x"]
