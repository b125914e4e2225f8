"""Long parts that lie at any angle are compared along one axis, and beside it as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.references import References

GREY, CENTRE = (200, 205, 210), (150, 130)


def screw(angle: float, scratch: int | None = None, spot: tuple[int, int] | None = None) -> Image.Image:
    """A part of 180 x 40 pixels about (150, 130), turned anticlockwise; ``scratch``: at a distance from its centre."""
    photo = Image.new("RGB", (300, 260), GREY)
    draw = ImageDraw.Draw(photo)
    draw.polygon([(60, 110), (60, 150), (240, 136), (240, 124)], fill=(90, 95, 100))
    for x in range(120, 240, 12):
        draw.line((x, 122, x + 6, 138), fill=(60, 60, 70), width=3)
    if scratch is not None:
        draw.rectangle((CENTRE[0] + scratch - 7, 126, CENTRE[0] + scratch + 7, 134), fill=(240, 230, 120))
    photo = photo.rotate(angle, Image.Resampling.BICUBIC, center=CENTRE, fillcolor=GREY)
    if spot:
        ImageDraw.Draw(photo).rectangle((spot[0] - 8, spot[1] - 8, spot[0] + 8, spot[1] + 8), fill=(40, 60, 160))
    return photo


def peak(predictor: Predictor, photo: Image.Image) -> tuple[int, int]:
    """(x, y) of the map's highest pixel."""
    y, x = np.unravel_index(predictor.inspect(photo).map.argmax(), photo.size[::-1])
    return int(x), int(y)


@pytest.fixture(scope="module")
def taught(compact_predictor: Predictor) -> Predictor:
    predictor = compact_predictor.without_references()
    references = predictor.settings.references.model_copy(update={"camera_copies": False})  # which take half the time
    predictor.settings = predictor.settings.model_copy(update={"references": references})
    predictor.set_references([screw(30), screw(-75)])
    return predictor


def test_defects_are_found_on_a_straightened_part_and_beside_it(taught: Predictor) -> None:
    references = taught.references
    assert references is not None
    assert references.straightens and references.tiles in ((1, 4), (1, 5))
    for angle in (60.0, 200.0, -20.0):
        turn = np.deg2rad(angle)
        expected = CENTRE[0] + 50 * np.cos(turn), CENTRE[1] - 50 * np.sin(turn)
        assert peak(taught, screw(angle, scratch=50)) == pytest.approx(expected, abs=14)
    assert peak(taught, screw(60, spot=(40, 40))) == pytest.approx((40, 40), abs=14), "beside the part"
    good, bad = (taught.inspect(screw(110, scratch)).score for scratch in (None, 50))
    assert good < bad


def test_straightened_references_are_saved_shared_and_added_to(taught: Predictor, tmp_path: Path) -> None:
    query, path = screw(60, scratch=20), tmp_path / "screw.safetensors"
    taught.save_references(path)
    loaded = taught.without_references()
    loaded.set_references((), path)
    assert torch.equal(loaded.inspect(query).model_map, taught.inspect(query).model_map)
    assert loaded.calibrated("object") == taught.calibrated("object")
    loaded.set_references([screw(150)], path)
    three = taught.without_references()
    three.set_references([screw(30), screw(-75), screw(150)])
    assert torch.equal(loaded.inspect(query).model_map, three.inspect(query).model_map)
    assert three.references is not None
    without = three.references.without([2])
    assert torch.equal(without.held_out_maps(), taught.references.held_out_maps())  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (400, 1), (64, 64)])
def test_photos_without_such_a_part_are_inspected(taught: Predictor, size: tuple[int, int]) -> None:
    speck = Image.new("RGB", size, GREY)
    speck.putpixel((size[0] // 2, size[1] // 2), (0, 0, 0))
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for photo in (Image.new("RGB", size, GREY), speck, Image.fromarray(noise).convert("L")):
        result = taught.inspect(photo)
        assert result.map.shape == size[::-1]
        assert np.isfinite(result.map).all()


def test_parts_that_lie_straight_are_compared_as_they_are(taught: Predictor) -> None:
    settings, transform = taught.settings.references, taught.transform
    assert not References(taught.model, settings, transform, [screw(0), screw(2)]).straightens
    own = settings.model_copy(update={"augmentation": "rotations"})
    assert not References(taught.model, own, transform, [screw(30), screw(60)]).straightens


def test_a_single_straightened_reference_is_calibrated_by_its_perturbed_copies(taught: Predictor) -> None:
    alone = taught.without_references()
    alone.set_references([screw(30)])
    assert alone.references is not None and alone.references.straightens
    assert alone.inspect(screw(75, scratch=50)).score > alone.inspect(screw(75)).score
