"""Connected regions of an anomaly map."""

import numpy as np
import pytest

from anomalygpt.inference.regions import find_regions, region_form, regions_of_verdict


def test_regions_of_a_map_made_by_hand() -> None:
    map_ = np.zeros((100, 200), dtype=np.float32)
    map_[10:20, 150:190] = 0.6
    map_[15, 160] = 0.9
    map_[80:100, 0:30] = 0.8
    map_[50, 100] = 1.0  # a speck: one pixel of 20 000
    small, large = find_regions(map_, 0.5)[::-1]
    assert (large.box, large.place) == ((0, 80, 30, 100), "bottom left")
    assert large.area == pytest.approx(600 / 20_000)
    assert large.peak == pytest.approx(0.8)
    assert (small.box, small.place) == ((150, 10, 190, 20), "top right")
    assert small.peak == pytest.approx(0.9)


def test_region_is_what_lies_strictly_above_the_threshold() -> None:
    assert find_regions(np.full((10, 10), 0.5, dtype=np.float32), 0.5) == ()
    (whole,) = find_regions(np.full((10, 10), 0.51, dtype=np.float32), 0.5)
    assert (whole.box, whole.area, whole.place) == ((0, 0, 10, 10), 1.0, "center")


def test_peak_of_a_region_is_not_its_neighbours() -> None:
    """A region inside the hollow of another one, and so inside its box."""
    map_ = np.zeros((60, 60), dtype=np.float32)
    map_[5:55, 5:55] = 0.9
    map_[10:50, 10:50] = 0.0
    map_[25:35, 25:35] = 0.6
    ring, inner = find_regions(map_, 0.5)
    assert (ring.peak, inner.peak) == (pytest.approx(0.9), pytest.approx(0.6))


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    map_ = np.kron(np.eye(2, dtype=np.float32), np.ones((10, 10), dtype=np.float32))
    (diagonal,) = find_regions(map_, 0.5)
    assert (diagonal.box, diagonal.area) == ((0, 0, 20, 20), 0.5)


def test_regions_agree_with_the_verdict() -> None:
    map_ = np.zeros((40, 60), dtype=np.float32)
    map_[30:36, 50:56] = 0.4
    map_[0:4, 0:4] = 0.35
    assert regions_of_verdict(map_, 0.3, is_anomalous=False) == ()
    assert regions_of_verdict(map_, 0.3, is_anomalous=True) == find_regions(map_, 0.3)
    (highest,) = regions_of_verdict(map_, 0.9, is_anomalous=True)
    assert highest.place == "bottom right"


def test_form_of_a_region() -> None:
    dot, bar, diagonal = np.ones((9, 9), dtype=bool), np.ones((4, 40), dtype=bool), np.eye(30, dtype=bool)
    assert [region_form(each) for each in (dot, bar, diagonal, np.ones((1, 2), dtype=bool))] == [
        "compact",
        "elongated",
        "elongated",
        "compact",
    ]
    ring = np.zeros((40, 40), dtype=bool)
    ring[[0, -1]] = ring[:, [0, -1]] = True
    assert region_form(ring) == "scattered"
