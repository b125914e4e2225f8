"""The command line that inspects photos."""

import contextlib
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from anomalygpt.inference.outputs import Outputs, output_stem, result_text
from anomalygpt.inference.results import prediction
from anomalygpt.predict import expand, main
from tests.fake_predictor import TOP_LEFT, result_with


class Run(NamedTuple):
    """One call: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Run(code, out.getvalue(), err.getvalue())


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
def compact(compact_overrides: list[str]) -> list[str]:
    """Options that select the compact model."""
    return ["--config", "compact", "--device", "cpu", "--set", "seed=1", *compact_overrides]


def results(run: Run) -> dict[str, dict[str, Any]]:
    """Each line of the output, by its photo's name."""
    return {Path(result["photo"]).name: result for result in map(json.loads, run.out.splitlines())}


@pytest.mark.weights
def test_folder_is_inspected_with_references_and_saved_references_give_the_same(
    photos: Path, compact: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    references = ["--reference", photos / "good" / "*.png"]
    run = call(photos / "test", *references, "--json", "--no-chat", "--out", folder, *compact)
    assert run.code == 1, "one photo is broken"
    found = results(run)
    assert sorted(found) == ["scratch.jpg", "scratch.png"]
    [error] = [line for line in run.err.splitlines() if "error" in line]
    assert "broken.png" in error and "Traceback" not in run.err
    defect, good = found["scratch.png"], found["scratch.jpg"]
    assert (defect["is_anomalous"], defect["verdict_from"], defect["answer"]) == (True, "score", "")
    assert defect["score"] > defect["threshold"] > 0
    assert defect["probability"] > 0.5 > good["probability"]
    assert defect["regions"][0]["position"] == "top right"
    assert len(defect["regions"][0]["box"]) == 4
    assert good["score"] < defect["score"]
    # The two photos differ in their suffix alone, and do not overwrite each other.
    names = [result[kind] for result in found.values() for kind in ("overlay", "map")]
    files = [".lock", "report.html", "results.csv", "results.jsonl"]
    assert sorted([*names, *files]) == sorted(path.name for path in folder.iterdir())
    for result in found.values():
        overlay, map_ = (Image.open(folder / result[kind]) for kind in ("overlay", "map"))
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGB", (160, 120))
        assert (map_.format, map_.mode, map_.size) == ("TIFF", "F", (160, 120))
        assert (float(np.asarray(map_).max()) > result["threshold"]) == result["is_anomalous"]
    unread, *written = map(json.loads, (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())
    assert written == list(found.values()) and "broken.png" in unread["error"]
    assert (folder / "results.csv").read_bytes().startswith(b"\xef\xbb\xbfphoto,")
    rows = list(csv.DictReader((folder / "results.csv").open(encoding="utf-8-sig", newline="")))
    assert [row["verdict"] for row in rows] == ["error", "good", "defective"]
    memory = tmp_path / "references" / "part.safetensors"
    kept = call(*references, "--save-references", memory, *compact)
    assert (kept.code, kept.out) == (0, "")
    other = call(photos / "test" / "scratch.png", "--references", memory, "--no-chat", *compact, "data.bits=12")
    assert other.code == 2 and "saved with its own data.bits" in other.err
    used = call(photos / "test" / "scratch.png", "--references", memory, "--json", "--no-chat", *compact)
    assert used.code == 0
    again = results(used)["scratch.png"]
    assert all(again[name] == defect[name] for name in ("score", "threshold", "probability"))


@pytest.mark.weights
def test_photo_is_answered_in_words(photos: Path, compact: list[str]) -> None:
    path, quick = photos / "test" / "scratch.png", ["llm.generation.max_new_tokens=8", "llm.generation.temperature=0"]
    run = call(path, "--question", "Is the screw bent?", "--class-name", "screw", *compact, *quick)
    assert run.code == 0
    assert "can't tell, without reference photos" in run.out and "this model does not know the part" in run.out
    sure = "inference.known_parts=null"
    run = call(path, "--question", "Is the screw bent?", "--class-name", "screw", *compact, *quick, sure)
    assert re.match(rf"[✓✗] +\d+%  {re.escape(str(path))}: (good|defective)", run.out)
    assert len(run.out.splitlines()[1]) > len("  ")


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A call that loads references and saves them again; no model is built."""
    from anomalygpt.inference.predictor import Predictor

    predictor = SimpleNamespace(
        save_references=lambda path: path.write_text("saved"),
        set_references=lambda photos, saved: None,
        references=None,
    )
    monkeypatch.setattr(Predictor, "from_config", lambda config, device, *, with_llm: predictor)
    save_file({}, tmp_path / "part.safetensors")
    old, new = (str(tmp_path / f"{name}.safetensors") for name in ("part", "again"))
    return ["--references", old, "--save-references", new]


@pytest.mark.parametrize("setting", ["inference.references.preset=best", "inference.references={preset: fast}"])
def test_saved_references_refuse_settings_of_references(saved: list[str], setting: str) -> None:
    run = call(*saved, "--config", "compact", "--set", "seed=1", setting)
    assert run.code == 2
    assert run.err.splitlines() == [
        f"error: --references {saved[1]}: saved with its own inference.references; "
        "for another one give the good photos, --reference GOOD …"
    ]


@pytest.mark.parametrize("settings", [[], ["--set", "seed=1"]])
def test_saved_references_override_the_configs_settings(saved: list[str], tmp_path: Path, settings: list[str]) -> None:
    (tmp_path / "other.yaml").write_text("base: compact\ninference: {references: {preset: best}}\n")
    assert call(*saved, "--config", tmp_path / "other.yaml", *settings).code == 0
    assert (tmp_path / "again.safetensors").read_text() == "saved"


FOUND = prediction(result_with(TOP_LEFT, "object", (160, 120)), "", "")


@pytest.mark.parametrize("kind", ["overlay", "map"])
def test_interrupted_write_leaves_the_picture_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    names = Outputs(tmp_path).write_pictures(Path("a.png"), FOUND)
    outputs = Outputs(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save = Image.Image.save

    def interrupted(picture: Image.Image, path: Path) -> None:
        save(picture, path)
        if path.suffix == Path(names[kind]).suffix:
            path.write_bytes(path.read_bytes()[:50])
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outputs.write_pictures(Path("a.png"), FOUND)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_photo_with_the_longest_possible_name_is_written(tmp_path: Path) -> None:
    path = Path("a" * (255 - len("_overlay.png")) + ".png")
    names = Outputs(tmp_path).write_pictures(path, FOUND)
    assert {path.name for path in tmp_path.iterdir()} > {*names.values()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "compact"], "no photo given; expected photos to inspect, or --save-references FILE with"),
        (["--config", "compakt"], "no config 'compakt'"),
        (["--config", "compact", "--set", "llm.generation.top_q=1"], "did you mean 'top_p'?"),
        (["--config", "compact", "--reference", "{photos}/test/broken.png"], "cannot be read as an image"),
        (["--config", "compact", "--reference", "{photos}/none/*.png"], "none/*.png: no photo there; expected an"),
        (["--config", "compact", "--references", "{photos}/none.safetensors"], "none.safetensors: no such file"),
        (["--config", "compact", "--watch", "{photos}/good"], "--watch: takes no photos"),
        (["--config", "compact", "--coco", "{photos}/test/note.txt/coco.json"], "can't be written"),
        (["--config", "compact", "--save-references", "{photos}/none.safetensors"], "needs good photos"),
        (["--config", "compact", "--out", "{photos}/test/note.txt"], "can't be made"),
        (["--config", "compact", "--device", "gpu"], "device 'gpu': not on this machine"),
        (["--config", "imagebind_vicuna7b", "--set", "deltas=[{{path: nowhere.pt, parts: [lora]}}]"], "nowhere.pt"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(photos: Path, arguments: list[str], words: str) -> None:
    given = [] if words.startswith("no photo given") else [photos / "good" / "0.png"]
    run = call(*given, *(argument.format(photos=photos) for argument in arguments))
    assert (run.code, run.out) == (2, "")
    assert run.err.count("\n") == 1 and run.err.startswith("error: ") and words in run.err


def test_text_holds_mark_probability_place_and_whose_words_the_answer_is() -> None:
    result = {"photo": "a.png", "is_anomalous": True, "verdict_from": "score", "answer": "Yes, at the top."}
    result |= {"probability": 0.9, "regions": [{}], "places": ["top", "left"], "total_area": 0.02, "reason": ""}
    result |= {"answer_agrees": False, "answer_source": "corrected"}
    assert result_text(result).splitlines() == [
        "✗  90%  a.png: defective, at the top and at the left (2.0%)",
        "  Yes, at the top.  (corrected: the language model's own answer contradicted the findings)",
    ]
    assert result_text(result | {"answer": ""}, "zh") == "✗  90%  a.png：有缺陷，上方和左侧（2.0%）"
    assert result_text(result | {"answer": ""}, colour=True).startswith("\033[31m✗\033[0m  90%")
    answered = result_text(result | {"verdict_from": "answer", "is_anomalous": False, "answer": "No."}).splitlines()
    assert answered[0] == "✓  90%  a.png: good"
    assert answered[2] == "  The score contradicts the answer; see the map."
    assert result_text(result | {"answer_source": "model"}).splitlines()[1] == "  Yes, at the top."
    foreign = result_text(result | {"reason": "other_part", "answer": "", "answer_agrees": True})
    assert foreign == "?  90%  a.png: can't tell, the photo does not look like the reference photos"
    odd = result | {"answer": "", "answer_agrees": True, "probability_without_odd": 0.3}
    assert result_text(odd).endswith("(2.0%), without odd reference photos: good (30%)")
    assert result_text(odd | {"is_anomalous": False}, "zh").endswith("：正常，去掉不一样的参考照片：正常（30%）")


def test_folders_patterns_and_photos_are_taken_once_and_in_order(photos: Path) -> None:
    good = [photos / "good" / f"{number}.png" for number in range(2)]
    assert expand([str(good[1]), str(photos / "good"), str(photos / "**" / "1.png")]) == [good[1], good[0]]
    assert expand([str(photos / "test")]) == [photos / "test" / n for n in ("broken.png", "scratch.jpg", "scratch.png")]
    assert expand([]) == []
    odd = photos / "part [1].png"  # looks like a pattern
    Image.new("RGB", (8, 8)).save(odd)
    assert expand([str(odd)]) == [odd]


def test_sub_folders_are_named_or_read_and_own_results_are_neither(photos: Path, tmp_path: Path, capsys) -> None:
    for name in ("a.png", "day/b.png", "a_overlay.png", "a_map.tiff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((photos / "good" / "0.png").read_bytes())
    assert [path.name for path in expand([str(tmp_path)])] == ["a.png"]
    assert "1 photos in sub-folders (day) are not read" in capsys.readouterr().err
    assert [path.name for path in expand([str(tmp_path)], recursive=True)] == ["a.png", "b.png"]
    assert [path.name for path in expand([str(tmp_path / "*.*")])] == ["a.png"]
    assert [path.name for path in expand([str(tmp_path / name) for name in ("a.png", "a_overlay.png")])] == ["a.png"]


def test_strict_makes_what_is_not_read_an_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.nef").touch()
    (tmp_path / "a.png").write_bytes((photos / "good" / "0.png").read_bytes())
    run = call(tmp_path, "--strict")
    assert run.code == 2 and re.fullmatch(r"error: .*photo\.nef\n", run.err)


@pytest.mark.weights
def test_ignored_stamp_of_new_photos_alone_changes_nothing(photos: Path, compact: list[str], tmp_path: Path) -> None:
    stamped = Image.open(photos / "test" / "scratch.jpg")
    stamped.save(tmp_path / "plain.png")
    stamped.paste((255, 255, 0), (0, 100, 60, 120))
    stamped.save(tmp_path / "stamped.png")
    references = ["--reference", photos / "good" / "*.png", "--save-references", tmp_path / "part.safetensors"]
    assert call(*references, "--ignore", "0,0.8,0.4,1", *compact).code == 0
    run = call(tmp_path / "*.png", "--references", tmp_path / "part.safetensors", "--json", "--no-chat", *compact)
    found = results(run)
    assert found["plain.png"]["score"] == found["stamped.png"]["score"]


def test_results_keep_apart_and_inside_their_folder() -> None:
    numbered = ["a/test/crack/0.png", "a/test/good/0.png", "b/test/good/0.png", "b/test/good/0.jpg"]
    paths = [*numbered, "/0.png", "../../x.png"]
    taken: Counter[str] = Counter()
    stems = [output_stem(Path(path), taken) for path in paths]
    assert stems == ["test_crack_0", "test_good_0", "test_good_0~2", "test_good_0~3", "0", "x"]
