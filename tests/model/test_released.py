"""What ``imagebind_huge.pth`` holds, told without the file."""

import json
from pathlib import Path

import torch

from anomalygpt.model.checkpoint import shapes_of
from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.imagebind.released import skipped_shapes

KEYS = Path(__file__).resolve().parents[1] / "parity" / "imagebind_huge_keys.json"


def own_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(ImageBind().state_dict())


def test_own_and_skipped_tensors_are_the_released_file() -> None:
    released = {name: tuple(shape) for name, shape in json.loads(KEYS.read_text()).items()}
    assert own_shapes() | skipped_shapes() == released
    assert len(released) == 1311


def test_no_tensor_is_both_built_and_skipped() -> None:
    assert own_shapes().keys() & skipped_shapes().keys() == set()
