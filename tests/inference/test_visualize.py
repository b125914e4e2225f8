"""Overlays on a fixed scale (specification 9: a heat map that is scaled per image paints noise on normal parts)."""

import numpy as np
import pytest
from PIL import Image

from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.inference.visualize import FAINT, overlay

GREY = Image.new("RGB", (60, 40), (120, 120, 120))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.0])
def test_map_below_half_the_threshold_is_never_painted(threshold: float) -> None:
    """Half the threshold and less leaves the photo as it is, whatever the map's own largest value is."""
    noise = np.random.default_rng(0).uniform(0, threshold / 2, (40, 60)).astype(np.float32)
    assert np.array_equal(np.asarray(overlay(GREY, noise, threshold)), np.asarray(GREY))


def test_anomalous_pixels_are_painted_and_others_are_not() -> None:
    map_ = np.zeros((40, 60), dtype=np.float32)
    map_[10:20, 30:40] = 0.9
    painted = np.asarray(overlay(GREY, map_, 0.3)).astype(int)
    changed = np.abs(painted - 120).sum(axis=-1) > 30
    assert np.array_equal(changed, map_ > 0.3)


def test_each_region_gets_a_frame_inside_the_photo_which_is_dimmed_around_it() -> None:
    region = RegionFinding("center", (0, 0, 60, 40), 1.0, 0.1, "compact")
    map_ = np.zeros((40, 60), dtype=np.float32)
    map_[:20] = 0.9
    framed = np.asarray(overlay(GREY, map_, 0.5, (region,)))
    assert framed[0, 0].tolist() == framed[39, 59].tolist() == [255, 255, 255]
    assert framed[30, 30].tolist() == [90, 90, 90]
    assert (
        np.asarray(overlay(GREY, map_, 0.5, (region,), opacity=0))[5:35, 5:55].tolist()
        == np.full((30, 50, 3), 120).tolist()
    )


def test_nothing_looks_anomalous_without_regions() -> None:
    hot = np.asarray(overlay(GREY, np.full((40, 60), 9, dtype=np.float32), 0.5)).astype(int)
    assert 0 < np.abs(hot - 120).max() <= 255 * FAINT


def test_number_of_a_small_region_at_the_upper_edge_does_not_cover_it() -> None:
    map_ = np.zeros((400, 600), dtype=np.float32)
    map_[:8, 590:] = 0.9
    region = RegionFinding("top right", (590, 0, 600, 8), 0.0003, 0.9, "compact")
    painted = np.asarray(overlay(GREY.resize((600, 400)), map_, 0.5, (region,))).astype(int)
    assert (painted[3:5, 593:597] @ (1, 0, -1) > 40).all()
