"""Command line, watched folder, page, server and library say the same of the same photo."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from anomalygpt.datasets.records import RESULTS
from anomalygpt.files import read_lines
from anomalygpt.inference.library import AnomalyGPT
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.session import Conversation, SharedModel
from anomalygpt.serving.app import Limits, build_app
from tests.shared_data import ROOT
from tests.test_predict import call

PCB = ROOT / "images" / "examples" / "pcb"
GOOD = [PCB / "good_1.jpg", PCB / "good_2.jpg"]


def verdict(record: dict[str, Any]) -> dict[str, Any]:
    """What no surface may differ in."""
    boxes = [[region["position"], list(region["box"])] for region in record["regions"]]
    return {"status": record["status"], "probability": round(record["probability"], 5), "regions": boxes}


@pytest.mark.weights
@pytest.mark.parametrize("name", ["defect.jpg", "good_2.jpg"])
def test_every_surface_gives_the_same_verdict(
    compact_predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    photo, references = PCB / name, GOOD if name == "defect.jpg" else GOOD[:1]
    new = compact_predictor.without_references
    monkeypatch.setattr(Predictor, "from_config", lambda *_, **__: new())

    run = call(photo, "--reference", *references, "--json", "--no-chat", "--out", tmp_path / "out")
    found = {"predict.py": json.loads(run.out), "its files": next(iter(read_lines(tmp_path / "out" / RESULTS)))}
    image, _ = SharedModel(new).inspect(Conversation(photo, tuple(references)))
    found["page"] = image.findings.to_dict()
    found["library"] = AnomalyGPT(new()).teach(references).inspect(photo).findings.to_dict()
    client = TestClient(build_app(new(), tmp_path / "parts", Limits()))
    client.put("/v1/parts/board", files=[("photos", path.open("rb")) for path in references]).raise_for_status()
    answer = client.post("/v1/inspect", files={"photo": photo.open("rb")}, data={"part": "board"})
    found["serve.py"] = answer.json()

    verdicts = {surface: verdict(record) for surface, record in found.items()}
    assert verdicts == dict.fromkeys(verdicts, verdicts["predict.py"])
    assert verdicts["page"]["status"] == ("defective" if name == "defect.jpg" else "good")
