"""Photos of another part, or of one that the model does not know, get no verdict."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.errors import UserError
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.checkpoint import save_tensors
from tests.shared_data import shared


def first(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.iterdir())[:count]]


@pytest.mark.weights
@pytest.mark.parametrize("with_references", [True, False])
def test_screw_is_no_bottle(predictor: Predictor, bottle_folder: Path, tmp_path: Path, with_references: bool) -> None:
    bottles = first(bottle_folder / "train" / "good", 4)
    tokens = torch.cat([predictor.inspect(bottle).features.embedding for bottle in bottles])
    save_tensors({"embeddings": tokens.half()}, tmp_path / "known.safetensors")
    known = str(tmp_path / "known.safetensors")
    settings = InferenceConfig(other_part_above=0.5, known_parts=known, findings="prompt")
    careful = Predictor(predictor.model, settings, predictor.generation)
    careful.set_references(bottles if with_references else [])
    [screw] = first(shared("data/mvtec_layout/screw/test/good"), 1)
    found = careful.predict(screw)
    reason = "other_part" if with_references else "unknown_part"
    assert (found.image.status, found.image.reason, found.image.regions) == ("can't tell", reason, ())
    assert "can't tell" in found.answer
    assert (found.to_dict()["status"], found.to_dict()["probability"]) == ("can't tell", None)
    broken = first(bottle_folder / "test" / "broken_large", 1)
    for bottle in [*bottles[:1], *broken]:
        assert careful.inspect(bottle).reason == ""


@pytest.mark.weights
def test_score_near_the_threshold_may_get_no_verdict(predictor: Predictor, photo) -> None:
    references, query = [photo(seed=seed) for seed in range(2)], photo(scratch=(0.3, 0.6), seed=9)
    for undecided, reason in ((0.0, ""), (0.499999, "near_threshold")):
        careful = Predictor(predictor.model, InferenceConfig(undecided=undecided))
        careful.set_references(references)
        assert careful.inspect(query).reason == reason


@pytest.mark.weights
def test_known_parts_of_another_encoder_are_refused(predictor: Predictor, tmp_path: Path) -> None:
    known = tmp_path / "known.safetensors"
    with pytest.raises(UserError, match="no such file"):
        Predictor(predictor.model, InferenceConfig(known_parts=str(known)))
    save_tensors({"embeddings": torch.eye(3)}, known)
    with pytest.raises(UserError, match="expected 384 numbers a photo"):
        Predictor(predictor.model, InferenceConfig(known_parts=str(known)))
