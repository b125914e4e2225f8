"""What the command line writes: tables, report, COCO; many photos at once, a watched folder, and how a run ends."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from anomalygpt import predict
from anomalygpt.datasets.records import RESULTS
from anomalygpt.files import read_lines
from anomalygpt.inference import outputs as module
from anomalygpt.inference.outputs import (
    Outputs,
    coco_annotations,
    coco_dataset,
    histogram,
    report_html,
    system_language,
)
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.regions import regions_of_verdict
from tests.fake_predictor import TOP_LEFT, result_with
from tests.shared_data import ROOT
from tests.test_predict import call, results


@pytest.fixture
def built(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Calls take the compact predictor that is built already."""
    monkeypatch.setattr(Predictor, "from_config", lambda config, device, *, with_llm: predictor)
    monkeypatch.setattr(predictor, "language_model", None)
    return predictor


@pytest.fixture
def photos(tmp_path: Path, photo) -> Path:
    """Three good photos in good/; two more, a scratched one and one that is no photo in new/."""
    for name in ("good", "new"):
        (tmp_path / name).mkdir()
    for seed in range(3):
        photo((160, 120), seed=seed).save(tmp_path / "good" / f"{seed}.png")
    photo((160, 120), seed=7).save(tmp_path / "new" / "a.png")
    photo((160, 120), scratch=(0.75, 0.25), seed=8).save(tmp_path / "new" / "b.png")
    photo((300, 200), seed=9).save(tmp_path / "new" / "d.png")
    (tmp_path / "new" / "c.png").write_text("text")
    return tmp_path


@pytest.mark.weights
@pytest.mark.usefixtures("built")
def test_batches_give_the_same_results(photos: Path) -> None:
    one = call(photos / "new", "--json")
    several = call(photos / "new", "--json", "--batch-size", 3)
    assert one.code == several.code == 1
    assert list(results(one)) == list(results(several)) == ["a.png", "b.png", "d.png"]
    for name, result in results(one).items():
        regions = [(region["box"], region["position"]) for region in result["regions"]]
        other = results(several)[name]
        assert [(region["box"], region["position"]) for region in other.pop("regions")] == regions
        assert other.items() <= result.items()


@pytest.mark.weights
@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--references", "good", "--fail-on", "defective"], 3),
        (["--fail-on", "defective"], 0),  # the model does not know the part
        (["--fail-on", "not-good"], 3),
    ],
)
def test_exit_code_is_3_where_it_is_asked_for(photos: Path, options: list[str], code: int, monkeypatch) -> None:
    monkeypatch.chdir(photos)
    assert call("new/b.png", *options).code == code


@pytest.mark.weights
@pytest.mark.usefixtures("built")
def test_interrupted_run_keeps_what_was_done(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, out = Outputs.add, tmp_path / "out"

    def interrupted(outputs: Outputs, result: Any) -> None:
        add(outputs, result)
        if len(read_lines(out / RESULTS)) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Outputs, "add", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
    run = call(photos / "new", "--out", out, "--lang", "zh", "--coco", tmp_path / "coco.json")
    assert run.code == 130 and run.err.splitlines()[-1] == "已中断，已完成的结果保留。"
    assert [Path(each["photo"]).name for each in read_lines(out / RESULTS)] == ["a.png", "b.png"]
    assert len(list(csv.reader((out / "results.csv").open(encoding="utf-8-sig", newline="")))) == 3
    assert "检测报告" in (out / "report.html").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 2


@pytest.mark.weights
@pytest.mark.usefixtures("built")
def test_full_disk_is_one_line_and_the_others_results_stay(photos: Path, tmp_path: Path) -> None:
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the map of d.png is larger
    try:
        run = call(photos / "new", "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.code == 2 and re.fullmatch(r"error: .*/out/.*: can't be written \(.*\)", run.err.splitlines()[-1])
    assert [Path(each["photo"]).name for each in read_lines(out / RESULTS)] == ["a.png", "b.png", "c.png"]
    assert sorted(path.suffix for path in out.iterdir()) == ["", ".jsonl", *3 * [".png"], *2 * [".tiff"]]


@pytest.mark.weights
@pytest.mark.usefixtures("built")
def test_photo_that_vanishes_meanwhile_is_one_line_and_the_others_results_stay(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, out, gone = Outputs.add, tmp_path / "out", photos / "new" / "d.png"
    (photos / "new" / "c.png").unlink()

    def vanishing(outputs: Outputs, result: Any) -> None:
        add(outputs, result)
        gone.unlink(missing_ok=True)

    monkeypatch.setattr(Outputs, "add", vanishing)
    run = call(photos / "new", "--out", out)
    assert run.code == 1
    assert [line for line in run.err.splitlines() if str(gone) in line] == [f"error: {gone}: no such file"]
    found = {Path(each["photo"]).name: each for each in read_lines(out / RESULTS)}
    assert ["error" in found[name] for name in ("a.png", "b.png", "d.png")] == [False, False, True]
    assert len(list(csv.reader((out / "results.csv").open(encoding="utf-8-sig", newline="")))) == 4


@pytest.mark.weights
@pytest.mark.usefixtures("built")
def test_watched_folder_is_inspected_once_even_after_a_restart(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, out, posted = tmp_path / "drop", tmp_path / "out", list[dict[str, Any]]()
    drop.mkdir()
    monkeypatch.setattr(predict, "INTERVAL", 0.05)

    class Receiver(BaseHTTPRequestHandler):
        refused = False

        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if Receiver.refused else 503)
            Receiver.refused = True
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    def wait_for(count: int) -> None:
        while len(read_lines(out / RESULTS)) < count:
            time.sleep(0.02)

    def drop_photos(names: list[str], done: int) -> None:
        try:
            for number, name in enumerate(names, start=done + 1):
                shutil.copy(photos / "new" / name, drop / "latest.png")
                wait_for(number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    runs, earlier = [], signal.getsignal(signal.SIGTERM)
    options = ["--watch", drop, "--out", out, "--post", f"http://127.0.0.1:{server.server_port}/"]
    for names, done in ((["a.png", "c.png"], 0), (["b.png"], 2)):
        dropping = threading.Thread(target=drop_photos, args=(names, done))
        dropping.start()
        runs.append(call(*options))
        dropping.join()
        if not done:
            with (out / "results.jsonl").open("a") as file:
                file.write('{"photo": "cut o')
    server.shutdown()
    signal.signal(signal.SIGTERM, earlier)
    assert [run.code for run in runs] == [1, 0]
    lines = [json.loads(line) for run in runs for line in run.out.splitlines()]
    assert lines == read_lines(out / RESULTS)
    assert ["error" in line for line in lines] == [False, True, False]
    assert posted == [lines[0], *lines]  # the first one twice: it was refused
    assert lines[0]["overlay"] != lines[2]["overlay"] and (out / lines[0]["overlay"]).is_file()
    assert (out / "report.html").is_file()


RESULT = {"is_anomalous": True, "reason": "", "regions": [{}], "places": ["top"], "total_area": 0.02, "answer": ""}


def test_report_is_one_file_with_the_worst_first(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320)).save(tmp_path / "overlay.png")
    found = [
        RESULT | {"photo": "x/good.png", "is_anomalous": False, "probability": 0.1, "score": 0.2},
        RESULT | {"photo": "x/<b>.png", "probability": 0.9, "score": 0.8, "answer": "<i>Yes</i>"},
        RESULT | {"photo": "x/foreign.png", "reason": "other_part", "probability": 0.99, "score": 0.9},
        RESULT | {"photo": "x/worst.png", "probability": 0.95, "score": 99.0},
    ]
    found = [{"score_threshold": 0.4, "overlay": "overlay.png", **each} for each in found]
    unread = {"photo": "x/broken.png", "error": "x/broken.png: cannot be read as an image"}
    page = report_html([*found, unread], tmp_path, {"model_name": "compact"})
    places = [page.index(name) for name in (">worst.png", ">&lt;b&gt;.png", ">foreign.png", ">good.png", "broken.png")]
    assert places == sorted(places)
    assert "&lt;i&gt;Yes&lt;/i&gt;" in page
    assert page.count("<img") == 4 and page.count('src="data:image/jpeg;base64,') == 4
    assert not re.search(r"https?://|url\(|<script|<link", page)
    bins = histogram(found)
    assert sum((each for each in bins[12:]), Counter()) == {"defective": 2, "can't tell": 1}
    assert sum(each["good"] for each in bins[:12]) == 1 and bins[-1] == {"defective": 1}
    without_pictures = report_html(found, tmp_path / "nowhere", {}, "zh")
    assert "检测报告" in without_pictures and "<img" not in without_pictures


@pytest.mark.parametrize(
    ("variables", "language"),
    [({"LANG": "zh_CN.UTF-8"}, "zh"), ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"), ({"LANG": "de_DE.UTF-8"}, "en")],
)
def test_language_is_the_environments(variables: dict[str, str], language: str, monkeypatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert system_language() == language


def test_coco_polygons_cover_their_regions(tmp_path: Path) -> None:
    image = result_with(TOP_LEFT, "part", (90, 60))
    image.map[:] = 0.1
    image.map[20:40, 20:50] = 1
    image.map[25:35, 25:45] = 0.1  # a hole, with another region in it
    image.map[30, 30:34] = 0.9
    image.map[50, 70] = 1  # one pixel
    cv2.circle(image.map, (75, 15), 9, 0.7, -1)
    image = image.__class__(**{**image.__dict__, "regions": regions_of_verdict(image.map, 0.5, True)})
    assert len(image.regions) >= 3
    found = coco_annotations(image)
    for region, annotation in zip(image.regions, found, strict=True):
        x, y, width, height = annotation["bbox"]
        points = np.reshape(annotation["segmentation"][0], (-1, 2))
        assert (x, y, x + width, y + height) == region.box
        assert (points.min(axis=0) >= (x, y)).all() and (points.max(axis=0) <= (x + width, y + height)).all()
        if region.area > 0.01:
            filled = 20 * 30 if region.box == (20, 20, 50, 40) else annotation["area"]
            assert cv2.contourArea(points.astype(np.float32)) == pytest.approx(filled, rel=0.05)
    made = coco_dataset({tmp_path / "a" / "1.png": ((90, 60), found), tmp_path / "b" / "1.png": ((90, 60), found)})
    assert [each["file_name"] for each in made["images"]] == ["a/1.png", "b/1.png"]
    assert [each["id"] for each in made["annotations"]] == list(range(1, 2 * len(found) + 1))


def test_coco_polygon_of_a_region_below_the_threshold() -> None:
    image = result_with(TOP_LEFT, "part", (90, 60))
    image.map[:] = 0.1
    image.map[10:20, 10:20] = 0.4
    regions = regions_of_verdict(image.map, image.threshold, True)
    image = image.__class__(**{**image.__dict__, "regions": regions})
    [annotation] = coco_annotations(image)
    assert annotation["bbox"] == [10, 10, 10, 10] and annotation["area"] == 100


def test_report_has_pictures_of_the_worst_photos_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PICTURES", 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "overlay.png")
    numbers = {"is_anomalous": True, "reason": "", "regions": [], "answer": "", "overlay": "overlay.png"}
    results = [{"photo": f"{number}.png", "probability": 0.9 + number / 100, **numbers} for number in range(3)]
    page = report_html(results, tmp_path, {})
    assert page.count("<img") == page.count("<figure") == 1
    assert page.index("2.png") < page.index("<td>1.png") < page.index("<td>0.png")


def test_documented_lines_import_results_into_fiftyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("fiftyone", "pycocotools"):
        pytest.importorskip(library, reason=f"needs {library}")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (90, 60)).save(tmp_path / "photos" / "a.png")
    annotations = coco_annotations(result_with(TOP_LEFT, "part", (90, 60)))
    coco = coco_dataset({tmp_path / "photos" / "a.png": ((90, 60), annotations)})
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(import fiftyone.*?)```", page, re.DOTALL)[1], names)
    assert [Path(sample.filepath).name for sample in names["dataset"]] == ["a.png"]
    [boxes] = names["dataset"].values("detections.detections.bounding_box")
    assert np.allclose(boxes, [[0, 0, 4 / 90, 4 / 60]])
