"""The class that people import."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalygpt import AnomalyGPT
from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.photos import IGNORED_COLOUR, configure
from anomalygpt.errors import UserError
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.session import Conversation, SharedModel
from tests.shared_data import ROOT

PCB = ROOT / "images" / "examples" / "pcb"
GOOD = [PCB / "good_1.jpg", PCB / "good_2.jpg"]


@pytest.fixture
def model(compact_predictor: Predictor) -> AnomalyGPT:
    return AnomalyGPT(compact_predictor.without_references())


@pytest.mark.weights
def test_path_picture_and_array_are_one_photo_and_the_part_can_be_saved(model: AnomalyGPT, tmp_path: Path) -> None:
    model.teach([GOOD[0], Image.open(GOOD[1])]).save(tmp_path / "pcb.safetensors")
    first = model.inspect(PCB / "defect.jpg")
    assert (first.status, first.reason) == ("defective", "") and first.map.shape == (512, 512)
    model.load(tmp_path / "pcb.safetensors")
    picture = Image.open(PCB / "defect.jpg")
    for photo in (str(PCB / "defect.jpg"), picture, np.asarray(picture)):
        again = model.inspect(photo)
        assert (again.probability, again.regions) == (first.probability, first.regions)
    first.save(tmp_path / "out", "pcb")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["pcb.json", "pcb_map.tiff", "pcb_overlay.png"]


@pytest.mark.weights
def test_photos_are_read_as_the_loaded_parts_references_were(model: AnomalyGPT, tmp_path: Path) -> None:
    configure(PhotoSettings(ignore="0,0,0.5,0.5"))
    try:
        model.teach(GOOD).save(tmp_path / "pcb.safetensors")
    finally:
        configure(PhotoSettings())
    model.load(tmp_path / "pcb.safetensors")
    first = model.inspect(PCB / "defect.jpg")
    assert first.photo.getpixel((0, 0)) == IGNORED_COLOUR
    model.predictor.feedback(first, good=True)
    model.save(tmp_path / "pcb.safetensors")  # as the server does after feedback
    shared = SharedModel(model.predictor.without_references)
    talk = Conversation(PCB / "defect.jpg", (tmp_path / "pcb.safetensors",))
    assert shared.inspect(talk)[0].photo.getpixel((0, 0)) == IGNORED_COLOUR
    model.load(tmp_path / "pcb.safetensors").teach(GOOD)
    assert model.inspect(PCB / "defect.jpg").photo.getpixel((0, 0)) != IGNORED_COLOUR


@pytest.mark.weights
def test_ignored_area_is_left_out_of_the_map(model: AnomalyGPT) -> None:
    configure(PhotoSettings(ignore="0,0,0.5,0.5"))
    try:
        anomaly_map = model.inspect(PCB / "defect.jpg").map
    finally:
        configure(PhotoSettings())
    assert not anomaly_map[:256, :256].any() and anomaly_map[300:, 300:].any()


@pytest.mark.weights
def test_one_photo_of_any_kind_is_one_reference(model: AnomalyGPT) -> None:
    for photo in (GOOD[0], str(GOOD[0]), Image.open(GOOD[0]), np.asarray(Image.open(GOOD[0]))):
        references = model.teach(photo).predictor.references
        assert references is not None and len(references) == 1


@pytest.mark.weights
def test_conversation_stays_with_its_photo(model: AnomalyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stream(predictor, image, question, history):
        asked.append((question, list(history)))
        yield from ("It is", " good.")

    monkeypatch.setattr(Predictor, "stream", stream)
    monkeypatch.setattr(model.predictor, "language_model", object())
    with pytest.raises(UserError, match="inspect a photo first"):
        model.chat("Where?")
    model.inspect(GOOD[0])
    assert model.chat("Is it good?") == "It is good."
    unfinished = model.stream("Why?")
    assert next(unfinished) == "It is"
    model.inspect(GOOD[1])
    unfinished.close()
    model.chat("Where?")
    assert asked == [("Is it good?", []), ("Why?", [("Is it good?", "It is good.")]), ("Where?", [])]


@pytest.mark.weights
def test_wrong_input_is_one_line(model: AnomalyGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\(8, 8, 4\) and uint8: expected"):
        model.inspect(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(UserError, match=r"shape \(0, 0, 3\)"):
        model.inspect(np.zeros((0, 0, 3), np.uint8))
    monkeypatch.setattr(model.predictor, "language_model", None)
    model.inspect(GOOD[0])
    with pytest.raises(UserError, match="chat=True"):
        model.chat("Where?")
