"""The command line that looks at photos."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalygpt.errors import UserError
from anomalygpt.predict import as_text, expand, main, output_stems, write_pictures
from tests.processes import run
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


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A call that loads references and saves them again; no model is built."""
    from anomalygpt.inference.predictor import Predictor

    predictor = SimpleNamespace(
        load_references=lambda path: None,
        save_references=lambda path: path.write_text("saved"),
        add_references=lambda photos: None,
    )
    monkeypatch.setattr(Predictor, "from_config", lambda config, device, *, with_llm: predictor)
    (tmp_path / "part.safetensors").touch()
    return ["--references", str(tmp_path / "part.safetensors"), "--save-references", str(tmp_path / "again")]


@pytest.mark.parametrize("setting", ["inference.references.preset=best", "inference.references={preset: fast}"])
def test_saved_references_refuse_settings_of_references(saved: list[str], setting: str) -> None:
    run = call(*saved, "--config", "compact", "--set", "seed=1", setting)
    assert run.code == 2
    assert run.err.splitlines() == [
        f"error: --references {saved[1]}: compared as it was saved; "
        "other inference.references need the good photos, --reference GOOD …"
    ]


@pytest.mark.parametrize("settings", [[], ["--set", "seed=1"]])
def test_saved_references_go_before_the_configs_own_settings(
    saved: list[str], tmp_path: Path, settings: list[str]
) -> None:
    (tmp_path / "other.yaml").write_text("base: compact\ninference: {references: {preset: best}}\n")
    assert call(*saved, "--config", tmp_path / "other.yaml", *settings).code == 0
    assert (tmp_path / "again").read_text() == "saved"


@pytest.mark.parametrize("disk_is_full", [False, True])
def test_results_that_can_not_be_written_are_one_line_and_exit_code_2(
    saved: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_is_full: bool
) -> None:
    def full_disk(*_arguments: Any, **_named: Any) -> None:
        raise OSError(28, "No space left on device")

    if disk_is_full:
        monkeypatch.setattr("anomalygpt.files.tempfile.mkstemp", full_disk)
    else:
        (tmp_path / "out" / "results.json").mkdir(parents=True)
    run = call(photos / "test" / "broken.png", "--config", "compact", "--out", tmp_path / "out")
    assert run.code == 2
    unread, unwritten = run.err.splitlines()
    assert "broken.png" in unread
    assert unwritten.startswith(f"error: --out {tmp_path / 'out'}: can't be written (")


@pytest.fixture
def found() -> Any:
    return SimpleNamespace(image=SimpleNamespace(map=np.zeros((120, 160), np.float32), threshold=0.5, regions=()))


@pytest.mark.parametrize("kind", ["overlay", "map"])
def test_interrupted_write_leaves_the_picture_that_was_there(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    photo = Image.new("RGB", (160, 120))
    names = write_pictures(tmp_path, "a", photo, found)
    before = {name: (tmp_path / name).read_bytes() for name in names.values()}
    save = Image.Image.save

    def interrupted(picture: Image.Image, path: Path) -> None:
        save(picture, path)
        if path.suffix == Path(names[kind]).suffix:
            path.write_bytes(path.read_bytes()[:50])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_pictures(tmp_path, "a", photo, found)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_long_name_of_a_photo_is_written_as_far_as_the_file_system_goes(found: Any, tmp_path: Path) -> None:
    names = write_pictures(tmp_path, "a" * (255 - len("_overlay.png")), Image.new("RGB", (160, 120)), found)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names.values())


def test_missing_photo_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "predict.py", str(tmp_path / "nowhere.png"), "--config", "compact"]
    done = run(command, timeout=120, cwd=ROOT / "code")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'nowhere.png'}: no photo there; expected an image file, a folder of images, or a pattern"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "compact"], "no photo given; expected photos to look at, or --save-references FILE to remember"),
        (["--config", "compakt"], "no config 'compakt'"),
        (["--config", "compact", "--set", "llm.generation.top_q=1"], "did you mean 'top_p'?"),
        (["--config", "compact", "--reference", "{photos}/test/broken.png"], "cannot be read as an image"),
        (["--config", "compact", "--reference", "{photos}/none/*.png"], "no photo there"),
        (["--config", "compact", "--references", "{photos}/none.safetensors"], "none.safetensors: no such file"),
        (["--config", "compact", "--references", "{photos}/good"], "good: a folder; expected a file"),
        (["--config", "compact", "--save-references", "{photos}/none.safetensors"], "needs good photos"),
        (["--config", "compact", "--out", "{photos}/test/note.txt"], "can't be written"),
        (["--config", "compact", "--device", "gpu"], "device 'gpu': not on this machine"),
        (["--config", "imagebind_vicuna7b", "--set", "deltas=[{{path: nowhere.pt, parts: [lora]}}]"], "nowhere.pt"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(photos: Path, arguments: list[str], words: str) -> None:
    given = [] if words.startswith("no photo given") else [photos / "good" / "0.png"]
    run = call(*given, *(argument.format(photos=photos) for argument in arguments))
    assert (run.code, run.out) == (2, "")
    assert run.err.count("\n") == 1
    assert run.err.startswith("error: ")
    assert words in run.err


def test_text_tells_probability_and_who_decided() -> None:
    numbers = {"probability": 0.9, "score": 0.5, "threshold": 0.3}
    result = {"photo": "a.png", "is_anomalous": True, "verdict_from": "score", "answer": "Yes, at the top.", **numbers}
    result |= {"answer_agrees": False, "regions": []}
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
    with pytest.raises(UserError, match=r"\*\.bmp: no photo there"):
        expand([str(photos / "*.bmp")])


def test_photo_whose_name_looks_like_a_pattern_is_found(photos: Path) -> None:
    odd = photos / "part [1].png"
    Image.new("RGB", (8, 8)).save(odd)
    assert expand([str(odd)]) == [odd]


def test_results_keep_apart_and_inside_their_folder() -> None:
    numbered = ["a/test/crack/0.png", "a/test/good/0.png", "b/test/good/0.png", "b/test/good/0.jpg"]
    paths = [*numbered, "/0.png", "../../x.png"]
    stems = output_stems([Path(path) for path in paths])
    assert list(stems.values()) == ["test_crack_0", "test_good_0", "test_good_0~2", "test_good_0~3", "0", "x"]
