"""Exported graphs give the maps and verdicts of torch, inside of the product and in a script without torch."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.photos import load_image
from anomalygpt.errors import UserError
from anomalygpt.inference.export import export, quantize
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.exported import ExportedEncoder, _run_by
from tests.shared_data import ROOT

ort = pytest.importorskip("onnxruntime", reason="needs pip install '.[deploy]'")
pytest.importorskip("onnxscript")

PCB = ROOT / "images" / "examples" / "pcb"
PHOTOS = [PCB / "defect.jpg", PCB / "good_1.jpg"]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())"


@pytest.fixture(scope="module")
def taught(compact_predictor: Predictor) -> Predictor:
    new = compact_predictor.without_references()
    new.set_references([load_image(PCB / name) for name in ("good_1.jpg", "good_2.jpg")])
    return new


@pytest.fixture(scope="module")
def exported(taught: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(taught, "onnx", folder)
    return folder


@pytest.mark.weights
def test_encoder_and_text_map_are_torchs(taught: Predictor, exported: Path) -> None:
    images = taught.transform(load_image(PHOTOS[0]))[None]
    features = taught.model.encoder.encode_image(images)
    taps, embedding = ort.InferenceSession(exported / "encoder.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(embedding, features.embedding.numpy(), atol=1e-5)
    [text_map] = ort.InferenceSession(exported / "decoder.onnx").run(None, {"taps": taps})
    expected = taught.without_references().inspect(load_image(PHOTOS[0])).model_map
    np.testing.assert_allclose(text_map, expected.numpy(), atol=1e-4)


@pytest.mark.weights
def test_backend_gives_the_same_maps(taught: Predictor, tmp_path: Path) -> None:
    expected = [taught.inspect(load_image(photo)) for photo in PHOTOS]
    own = taught.model.encoder
    taught.model.encoder = ExportedEncoder(own, "onnx", tmp_path)
    try:
        found = [taught.inspect(load_image(photo)) for photo in PHOTOS]
    finally:
        taught.model.encoder = own
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.map, one.map, atol=1e-4)
        assert other.probability == pytest.approx(one.probability, abs=1e-4)


@pytest.mark.weights
@pytest.mark.parametrize(("form", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_encoder_of_8_bits_sees_nearly_the_same(taught: Predictor, tmp_path: Path, form: Any, suffix: str) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    export(taught, form, tmp_path)
    before = sum(path.stat().st_size for path in tmp_path.glob("encoder.*"))
    quantize(tmp_path, form, taught, [load_image(photo) for photo in PHOTOS])
    assert sum(path.stat().st_size for path in tmp_path.glob("encoder.*")) < before / 3
    images = taught.transform(load_image(PHOTOS[0]))[None].numpy()
    _, embedding = _run_by(form, tmp_path / f"encoder.{suffix}")(images)
    expected = taught.inspect(load_image(PHOTOS[0])).features.embedding.numpy()
    assert float((embedding * expected).sum()) > 0.98, "cosine"


@pytest.mark.weights
def test_documented_script_judges_without_torch(taught: Predictor, exported: Path, tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "deploy.py").write_text(script)
    command = [sys.executable, "-c", WITHOUT_TORCH, "deploy.py", str(exported)]
    judged = [*command, "judge", *map(str, PHOTOS)]
    printed = subprocess.run(judged, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for line, photo in zip(printed.splitlines(), PHOTOS, strict=True):
        result, (name, status, probability, score) = taught.inspect(load_image(photo)), line.split()
        assert (name, status) == (str(photo), result.status)
        assert (float(probability), float(score)) == pytest.approx((result.probability, result.score), abs=1e-3)
    assert Image.open(tmp_path / "defect_map.png").size == (512, 512)
    teach = [*command, "teach", *(str(PCB / f"good_{number}.jpg") for number in (1, 2))]
    subprocess.run(teach, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert np.load(exported / "memory.npz")["memory"].shape[0] == 4
    assert json.loads((exported / "model.json").read_text())["size"] == 224


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_graph_that_is_none_is_refused(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "encoder.onnx").write_text("text")
    with pytest.raises(UserError, match=r"encoder\.onnx: cannot be read as an exported encoder"):
        _run_by(backend, tmp_path / "encoder.onnx")
