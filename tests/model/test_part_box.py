"""Where a part lies in its photo."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from anomalygpt.model.photo_geometry import part_box


def bar(angle: float, size: tuple[int, int] = (320, 260)) -> Image.Image:
    """A grey wedge of 160 x 40 pixels about (170, 120), its thick end red, turned anticlockwise by an angle."""
    photo = Image.new("RGB", size, (200, 205, 210))
    draw = ImageDraw.Draw(photo)
    draw.polygon([(90, 100), (90, 140), (250, 128), (250, 112)], fill=(90, 90, 90))
    draw.rectangle((90, 100, 110, 140), fill=(180, 40, 40))
    return photo.rotate(angle, center=(170, 120), fillcolor=(200, 205, 210))


@pytest.mark.parametrize(
    ("angle", "tilt"), [(0, 0), (90, 0), (30, 30), (45, 45), (70, 20), (-70, 20), (150, 30), (180, 0)]
)
def test_box_lies_along_the_part(angle: float, tilt: float) -> None:
    box = part_box(bar(angle))
    assert box.centre == pytest.approx((170, 120), abs=2)
    assert box.size == pytest.approx((161, 41), abs=6)
    assert box.tilt == pytest.approx(tilt, abs=2)
    assert box.is_elongated
    cropped = np.asarray(box.straightened(bar(angle))[0]).astype(int)
    rows, columns = np.nonzero(cropped[..., 0] > cropped[..., 1] + 60)
    assert columns.max() < cropped.shape[1] / 3, "its thick end is at the left"
    assert rows.mean() == pytest.approx(cropped.shape[0] / 2, abs=2)


def test_box_of_a_large_photo_is_in_its_own_pixels() -> None:
    small, large = part_box(bar(30)), part_box(bar(30).resize((3200, 2600)))
    assert large.centre == pytest.approx(10 * small.centre, rel=0.02)
    assert large.size == pytest.approx(10 * small.size, rel=0.06)


def test_map_of_the_cropped_part_is_placed_on_its_photo() -> None:
    photo = bar(30)
    part, matrix = part_box(photo).straightened(photo)
    of_part = torch.from_numpy(np.asarray(part.resize((224, 224)))).permute(2, 0, 1)[None].float()
    grid = F.affine_grid(matrix[None], [1, 3, 224, 224], align_corners=False)
    placed = F.grid_sample(of_part, grid, align_corners=False)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(photo.resize((224, 224))).astype(float)
    inside = placed.max(axis=2) > 0
    assert 0.1 < inside.mean() < 0.3
    assert np.abs(placed - expected)[inside].mean() < 3


@pytest.mark.parametrize("what", ["round", "texture", "flat", "two"])
def test_other_photos_show_no_elongated_part(what: str) -> None:
    photo = Image.new("RGB", (256, 256), (200, 205, 210))
    draw = ImageDraw.Draw(photo)
    if what == "round":
        draw.ellipse((70, 60, 190, 180), fill=(90, 90, 90))
    if what == "texture":
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    if what == "two":
        for left in (40, 150):
            draw.ellipse((left, 80, left + 60, 140), fill=(90, 90, 90))
    box = part_box(photo)
    assert not box.is_elongated
    assert min(box.straightened(photo)[0].size) > 0
