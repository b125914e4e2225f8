"""The benchmark's reference, the released algorithm written out, draws the product's maps."""

import torch

from anomalygpt.model.memory_bank import MemoryBank
from benchmarks.paper_model import CLASS_NAMES, SHOTS, ReleasedMaps, random_model
from tests.helpers import TINY


@torch.inference_mode()
def test_released_algorithm_draws_the_same_maps() -> None:
    torch.manual_seed(0)
    model = random_model("cpu", torch.float32, TINY)
    released, photos = ReleasedMaps(model), torch.randn(1 + SHOTS, 3, TINY.image_size, TINY.image_size)
    features, memory = model.encode(photos[:1]), MemoryBank(model.encode(photos[1:]))
    zero_shot, few_shot = model.anomaly_map(features, CLASS_NAMES), model.anomaly_map(features, CLASS_NAMES, memory)
    assert zero_shot.std() > 0 and few_shot.std() > 0
    assert torch.allclose(released.map(photos[:1]), zero_shot, atol=1e-5)
    assert torch.allclose(released.map(photos[:1], photos[1:]), few_shot, atol=1e-5)
