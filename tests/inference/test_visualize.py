"""Overlays on a fixed scale (specification 9: a heat map that is scaled per image paints noise on normal parts)."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.inference.regions import Region
from anomalygpt.inference.visualize import heat, overlay


def grey(size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, (120, 120, 120))


def flat(value: float, size: tuple[int, int] = (60, 40)) -> np.ndarray:
    return np.full((size[1], size[0]), value, dtype=np.float32)


def test_heat_is_half_at_the_threshold_and_whole_at_twice_that() -> None:
    values = np.array([[-1.0, 0.0, 0.2, 0.4, 9.0]], dtype=np.float32)
    assert heat(values, 0.2)[0].tolist() == pytest.approx([0, 0, 0.5, 1, 1])


def test_heat_is_not_scaled_per_image() -> None:
    calm = np.random.default_rng(0).uniform(0, 0.05, (40, 60)).astype(np.float32)
    assert float(heat(calm, 0.5).max()) <= 0.05


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.0])
def test_calm_map_is_never_painted(threshold: float) -> None:
    """Half the threshold and less leaves the photo as it is, whatever the map's own largest value is."""
    noise = np.random.default_rng(0).uniform(0, threshold / 2, (40, 60)).astype(np.float32)
    assert np.array_equal(np.asarray(overlay(grey(), noise, threshold)), np.asarray(grey()))


def test_anomalous_pixels_are_painted_and_others_are_not() -> None:
    map_ = flat(0.0)
    map_[10:20, 30:40] = 0.9
    painted = np.asarray(overlay(grey(), map_, 0.3)).astype(int)
    changed = np.abs(painted - 120).sum(axis=-1) > 30
    assert np.array_equal(changed, map_ > 0.3)


def test_hotter_is_redder() -> None:
    warm, hot = (np.asarray(overlay(grey(), flat(value), 0.3))[0, 0].astype(int) for value in (0.3, 0.6))
    assert hot[0] - hot[1] > warm[0] - warm[1]


def test_each_region_gets_a_frame_inside_the_photo() -> None:
    region = Region(box=(0, 0, 60, 40), area=1.0, position="center", peak=0.1)
    framed = np.asarray(overlay(grey(), flat(0.0), 0.5, (region,)))
    assert framed[0, 0].tolist() == framed[39, 59].tolist() == [255, 255, 255]
    assert framed[20, 30].tolist() == [120, 120, 120]


def test_grey_photo_is_painted_too() -> None:
    assert overlay(Image.new("L", (60, 40), 120), flat(0.9), 0.3).mode == "RGB"
