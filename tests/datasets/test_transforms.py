"""Geometry, colours and masks, partly by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalygpt.datasets.photos import load_image, to_rgb
from anomalygpt.datasets.records import DatasetError
from anomalygpt.datasets.transforms import ImageTransform


def plain(size, geometry="squash"):
    return ImageTransform(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), geometry)


def test_normalisation_is_value_minus_mean_over_std():
    means, deviations = (0.5, 0.4, 0.3), (0.27, 0.26, 0.25)
    out = ImageTransform(8, means, deviations)(Image.new("RGB", (20, 10), (255, 0, 51)))
    assert out.shape == (3, 8, 8) and out.dtype == torch.float32
    expected = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), means, deviations, strict=True)]
    assert torch.allclose(out[:, 3, 3], torch.tensor(expected))


def test_squash_shows_the_whole_photo_and_crop_its_centre():
    photo = Image.new("RGB", (90, 30), (0, 0, 0))
    photo.paste((255, 255, 255), (30, 0, 60, 30))
    assert np.asarray(plain(30, "crop").shown(photo)).min() == 255
    squashed = np.asarray(plain(30).shown(photo))
    assert squashed[:, :8].max() == 0 and squashed[:, 22:].max() == 0 and squashed[:, 12:18].min() == 255


@pytest.mark.parametrize("size", [(224, 224), (301, 224), (500, 333), (333, 500), (64, 200)])
def test_crop_agrees_with_torchvision(size):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    resized = functional.resize(photo, [224], interpolation=functional.InterpolationMode.BICUBIC)
    assert np.array_equal(plain(224, "crop").shown(photo), functional.center_crop(resized, [224, 224]))


@pytest.mark.parametrize("geometry", ["squash", "crop"])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (200, 150), (32, 32), (31, 97)])
def test_a_map_comes_back_to_the_pixels_that_it_was_made_from(geometry, size):
    width, height = size
    side = min(size)
    left, top = (width - side) // 2 + side // 4, (height - side) // 2 + side // 4
    mask = Image.new("L", size, 0)
    mask.paste(255, (left, top, left + side // 2, top + side // 3))
    transform = plain(128, geometry)
    back = transform.to_photo(transform.mask(mask)[0], size)
    assert back.shape == (height, width)
    wrong = (back > 0.5) != torch.from_numpy(np.array(mask) > 127)
    assert wrong.float().mean() < 0.01


def test_pixels_outside_the_crop_get_the_fill_value():
    back = plain(16, "crop").to_photo(torch.ones(16, 16), (30, 10), fill=-1.0)
    assert torch.allclose(back, torch.tensor([-1.0, 1.0, -1.0]).repeat_interleave(10).expand(10, 30))
    assert torch.allclose(plain(16).to_photo(torch.ones(16, 16), (30, 10), fill=-1.0), torch.ones(10, 30))


def test_a_map_of_another_size_than_the_transform_is_mapped_too():
    coarse = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    back = plain(224).to_photo(coarse, (4, 2))
    assert torch.allclose(back[0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_every_mode_of_photo_becomes_rgb():
    grey = np.full((6, 5), 128, np.uint8)
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I", "F"):
        assert to_rgb(Image.fromarray(grey).convert(mode)).mode == "RGB"
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert to_rgb(half).getpixel((0, 0)) == (0, 0, 0)  # a camera's unused alpha channel
    half.putpixel((1, 1), (9, 9, 9, 255))
    assert to_rgb(half).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("RGBA", (2, 2), (10, 20, 30, 255))).getpixel((0, 0)) == (10, 20, 30)


def test_sixteen_bits_are_scaled_and_a_photo_taken_sideways_is_turned_upright(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16)).save(tmp_path / "deep.png")
    photo = np.asarray(load_image(tmp_path / "deep.png"))
    assert photo[0, :, 0].tolist() == [0, 100, 255]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)


def test_unreadable_photos_are_one_line_errors(tmp_path, write_photo):
    whole = write_photo(tmp_path / "whole.png", (200, 200))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.png", "empty.png", "missing.png"):
        with pytest.raises(DatasetError, match=name) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
