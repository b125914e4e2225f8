"""The one-shot reference in its four rotations (specification 7)."""

import pytest
import torch

from anomalygpt.model.imagebind.imagebind import ImageBind
from anomalygpt.model.memory_bank import MemoryBank
from anomalygpt.training.loop import reference_views
from tests.helpers import TINY


def part() -> torch.Tensor:
    """A part (1, 3, 224, 224) that looks different from each side."""
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_four_quarter_turns_the_photo_itself_first() -> None:
    views = reference_views(part(), rotated=True)
    assert views.shape == (1, 4, 3, 224, 224)
    assert torch.equal(views[:, 0], part())
    for turns in range(4):
        assert torch.equal(torch.rot90(views[0, turns], -turns, dims=(-2, -1)), part()[0])


def test_without_rotation_the_photo_alone() -> None:
    assert torch.equal(reference_views(part(), rotated=False), part().unsqueeze(1))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_reference_finds_rotated_part(turns: int) -> None:
    """A good part that lies the other way round is normal beside the four views, and strange beside the one."""
    torch.manual_seed(1)
    encoder = ImageBind(TINY).eval()
    query = torch.rot90(part(), turns, dims=(-2, -1))
    with torch.no_grad():
        seen = {
            rotated: MemoryBank(encoder.encode_image(reference_views(part(), rotated=rotated)[0]))
            .anomaly_map(encoder.encode_image(query), 224)
            .max()
            for rotated in (True, False)
        }
    assert float(seen[True]) < 1e-4
    assert float(seen[False]) > 1e-3
