"""The map in units of its threshold."""

import numpy as np
import pytest
import torch

from anomalygpt.model.map_calibration import calibrate_map


def test_threshold_is_one_half_and_twice_that_is_one() -> None:
    values = torch.tensor([-1.0, 0.0, 0.1, 0.2, 0.4, 9.0])
    assert calibrate_map(values, 0.2).tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_tensors_and_arrays_alike() -> None:
    values = np.linspace(-0.5, 2, 30, dtype=np.float32)
    assert np.allclose(calibrate_map(torch.from_numpy(values), 0.3).numpy(), calibrate_map(values, 0.3))


def test_threshold_of_zero_marks_whatever_lies_above_it() -> None:
    assert calibrate_map(torch.tensor([0.0, 0.01]), 0.0).tolist() == [0, 1]


def test_gradient_reaches_the_map() -> None:
    map_ = torch.tensor([0.1, 5.0], requires_grad=True)
    calibrate_map(map_, 0.5).sum().backward()
    assert map_.grad is not None
    assert map_.grad.tolist() == [1.0, 0.0]
