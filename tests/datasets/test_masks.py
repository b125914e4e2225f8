"""Masks of any coding mark the same pixels, or are refused in one line."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomalygpt.datasets.masks import load_mask, own_values
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.errors import set_strict

SIZE = (40, 30)
SLOPE = np.tile(np.arange(40) * 6, (30, 1))


@pytest.fixture(autouse=True)
def fresh_warnings():
    set_strict(False)


@pytest.fixture
def marked() -> np.ndarray:
    """(30, 40) bool: a rectangle of 10 x 15 pixels."""
    flags = np.zeros(SIZE[::-1], bool)
    flags[5:15, 10:25] = True
    return flags


@pytest.fixture
def record(tmp_path):
    """Makes a record of a plain photo with masks: an image, or a pair of an image and its file's name, each."""

    def make(*masks, photo=None) -> ImageRecord:
        (photo or Image.new("RGB", SIZE)).save(tmp_path / "photo.png")
        pairs = [mask if isinstance(mask, tuple) else (mask, f"{n}.png") for n, mask in enumerate(masks)]
        for image, name in pairs:
            image.save(tmp_path / name)
        return ImageRecord(tmp_path / "photo.png", "disc", "test", True, "cut", tuple(tmp_path / n for _, n in pairs))

    return make


def palette(values, colours):
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def colours(marked, background, *defects):
    pixels = np.full((*marked.shape, 3), background, np.uint8)
    for number, colour in enumerate(defects):
        pixels[marked & (np.arange(marked.shape[1]) % len(defects) == number)] = colour
    return Image.fromarray(pixels)


def with_alpha(rgb, alpha):
    return Image.fromarray(np.dstack([np.broadcast_to(rgb, (*alpha.shape, 3)), alpha]).astype(np.uint8))


def two(marked, left, right, dtype=np.uint8):
    """Two labels, each for half of what is marked."""
    return np.where(marked, np.where(np.arange(SIZE[0]) < 17, left, right), 0).astype(dtype)


def numbered(marked):
    """More than 32 labels, five pixels wide each."""
    rows, columns = np.indices(marked.shape)
    return np.where(marked, rows * 9 + columns // 5, 0).astype(np.uint8)


CODINGS = {
    "binary 0/255": lambda m: Image.fromarray(m.astype(np.uint8) * 255),
    "one bit": lambda m: Image.fromarray(m),
    "0/1": lambda m: Image.fromarray(m.astype(np.uint8)),
    "0/7": lambda m: Image.fromarray(m.astype(np.uint8) * 7),
    "16 bits": lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    "16-bit 0/1": lambda m: Image.fromarray(m.astype(np.uint16)),
    "16-bit numbers": lambda m: Image.fromarray(two(m, 3, 1001, np.uint16)),
    "32-bit numbers": lambda m: (Image.fromarray(two(m, 3, 100001, np.int32)), "mask.tif"),
    "floats 0/1": lambda m: (Image.fromarray(m.astype(np.float32)), "mask.tif"),
    "small and large labels": lambda m: Image.fromarray(two(m, 1, 60)),
    "labels from 1 on": lambda m: Image.fromarray(two(m, 1, 2) + np.uint8(1)),
    "forty labels": lambda m: Image.fromarray(numbered(m)),
    "grey": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("RGB"),
    "CMYK": lambda m: (colours(m, (0, 0, 0), (255, 255, 255)).convert("CMYK"), "mask.tif"),
    "navy and white": lambda m: colours(m, (0, 0, 0), (0, 0, 128), (255, 255, 255)),
    "nearly black": lambda m: colours(m, (0, 0, 0), (1, 0, 2)),
    "on viridis": lambda m: colours(m, (68, 1, 84), (253, 231, 37)),
    "red on white": lambda m: colours(m, (255, 255, 255), (200, 0, 0)),
    "palette": lambda m: palette(m, [(0, 0, 0), (128, 0, 0)]),
    "labels with a coloured palette": lambda m: palette(two(m, 1, 60), [(i, 0, 255 - i) for i in range(256)]),
    "labels that all look black": lambda m: palette(m, [(0, 0, 0)] * 256),
    "white comes first": lambda m: palette(~m, [(255, 255, 255), (0, 0, 0)]),
    "red comes first": lambda m: palette(~m, [(255, 0, 0), (0, 0, 0)]),
    "alpha alone": lambda m: with_alpha((255, 255, 255), m * 255),
    "black in alpha": lambda m: with_alpha((0, 0, 0), m * 128),
    "red on nothing": lambda m: with_alpha(np.where(m[..., None], (255, 0, 0), 0), m * 255),
    "opaque alpha": lambda m: with_alpha(np.where(m[..., None], (0, 0, 90), 0), np.full(m.shape, 255)),
    "grey and alpha": lambda m: Image.fromarray(m.astype(np.uint8) * 255).convert("LA"),
    "JPEG": lambda m: (Image.fromarray(m.astype(np.uint8) * 255), "mask.jpg"),
    "colours in JPEG": lambda m: (colours(m, (0, 0, 0), (200, 0, 0)), "mask.jpg"),
    "WebP": lambda m: (Image.fromarray(m.astype(np.uint8) * 255), "mask.webp"),
    "GIF": lambda m: (Image.fromarray(m.astype(np.uint8) * 255), "mask.gif"),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_masks_of_any_coding_mark_the_same_pixels(record, marked, coding, capsys):
    found = np.asarray(load_mask(record(CODINGS[coding](marked))))
    assert found.shape == marked.shape and found.dtype == np.uint8
    if any(word in coding for word in ("JPEG", "WebP")):
        inner = np.asarray(Image.fromarray(marked).filter(ImageFilter.MinFilter(7)))
        outer = np.asarray(Image.fromarray(marked).filter(ImageFilter.MaxFilter(7)))
        assert (found[inner] > 25).all() and (found[~outer] <= 25).all()
    else:
        assert np.array_equal(found > 0, marked) and set(np.unique(found)) == {0, 255}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("image", "coding"),
    [
        (Image.fromarray(np.tile(np.uint8([0, 255]), (30, 20))), "binary 0/255"),
        (Image.fromarray(np.tile(np.uint8([0, 1, 2, 0]), (30, 10))), "labels > 0"),
        (Image.fromarray(np.tile(np.uint8([[[9, 9, 9, 0], [9, 9, 9, 255]]]), (30, 20, 1))), "alpha"),
        (Image.fromarray(np.tile(np.uint8([[[0, 0, 0], [0, 9, 0]]]), (30, 20, 1))), "colours on black"),
        (Image.new("L", SIZE), "nothing marked"),
    ],
)
def test_how_a_mask_was_read_is_said(record, image, coding):
    assert load_mask(record(image)).info["coding"] == coding


def test_jpeg_mask_of_a_thin_scratch_keeps_its_width(record):
    scratch = np.zeros(SIZE[::-1], dtype=np.uint8)
    scratch[:, 10:13] = 255
    image = load_mask(record((Image.fromarray(scratch), "mask.jpg")))
    assert image.info["coding"] == "grey levels"
    assert (np.asarray(image) > 127).sum() == (scratch > 0).sum()


def test_soft_edges_stay_grey_levels(record, marked):
    large = Image.fromarray(np.kron(marked, np.ones((8, 8))).astype(np.uint8) * 255)
    soft = large.filter(ImageFilter.GaussianBlur(9))
    image = load_mask(record(soft))
    assert image.info["coding"] == "grey levels" and np.array_equal(image, soft)
    deep = Image.fromarray(np.asarray(soft).astype(np.uint16) * 16)  # 12 bits
    image = load_mask(record(deep))
    assert image.info["coding"] == "grey levels" and np.abs(np.asarray(image).astype(int) - np.asarray(soft)).max() <= 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (40, 20)), r"0\.png: 40 x 20 pixels, and its photo photo\.png 40 x 30"),
        (Image.new("L", (30, 40)), "30 x 40 pixels"),
        (Image.fromarray(np.full((30, 40), np.nan, np.float32)), "negative values or NaN"),
        (Image.fromarray(np.arange(-600, 600, dtype=np.int32).reshape(30, 40)), "negative values or NaN"),
        (Image.fromarray(np.tile(np.uint8([9, 20, 30, 20]), (30, 10))), "no value is 0 and the lowest, 9"),
        (Image.fromarray(np.tile(np.uint8([[[9, 0, 0], [0, 9, 0]]]), (30, 20, 1))), "no black, and no colour covers"),
        (Image.new("RGB", SIZE, (9, 0, 0)), "one colour alone"),
        (
            with_alpha(np.where(np.arange(40)[:, None] < 30, 0, 255), SLOPE),
            "alpha channel",
        ),
        (palette(np.tile([0, 0, 0, 1], (30, 10)), [(255, 0, 0), (0, 0, 0)]), "may be black or the palette's number 0"),
    ],
)
def test_an_ambiguous_mask_is_refused_in_one_line(record, image, message):
    name = "0.tif" if image.mode in "FI" else "0.png"
    with pytest.raises(DatasetError, match=message) as caught:
        load_mask(record((image, name)))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_unreadable_and_missing_masks_are_named(record, tmp_path):
    made = record(Image.new("L", SIZE))
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"0\.png: cannot be read as an image"):
        load_mask(made)
    (tmp_path / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png: no such file"):
        load_mask(made)
    with pytest.raises(DatasetError, match=r"photo\.png: has no mask"):
        load_mask(record())


def test_several_masks_and_pages_count_together(record, marked, tmp_path):
    halves = [Image.fromarray(two(marked, *values)) for values in ((255, 0), (0, 1))]
    assert np.array_equal(np.asarray(load_mask(record(*halves))) > 0, marked)
    halves = [half.copy() for half in halves]
    halves[0].save(tmp_path / "pages.tif", save_all=True, append_images=halves[1:])
    photo = record()
    pages = ImageRecord(photo.image, "disc", "test", True, "cut", (tmp_path / "pages.tif",))
    assert np.array_equal(np.asarray(load_mask(pages)) > 0, marked)
    with pytest.raises(DatasetError, match="masks of one size, found 40 x 30, 80 x 60"):
        load_mask(record(halves[0], halves[1].resize((80, 60))))


def test_a_mask_of_another_size_keeps_it(record, marked):
    double = Image.fromarray(marked).resize((80, 60))
    assert load_mask(record(double)).size == (80, 60)
    assert load_mask(record(Image.new("L", (20, 15)))).size == (20, 15)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_drawn_before_or_after_the_photo_was_turned_is_the_same(tmp_path, marked, orientation, scale, capsys):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = Image.fromarray(marked.astype(np.uint8) * 255).resize((40 * scale, 30 * scale), Image.Resampling.NEAREST)
    raw.save(tmp_path / "exif.png", exif=exif)
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(Image.open(tmp_path / "exif.png"))
    upright.save(tmp_path / "upright.png", exif=Image.Exif())
    raw.save(tmp_path / "raw.png")
    Image.new("RGB", SIZE).save(tmp_path / "photo.jpg", exif=exif)
    for name in ("upright.png", "exif.png", *(["raw.png"] if orientation in (1, 5, 6, 7, 8) else [])):
        made = ImageRecord(tmp_path / "photo.jpg", "disc", "test", True, "cut", (tmp_path / name,))
        assert np.array_equal(load_mask(made), upright), name
    said = capsys.readouterr().err
    assert ("upright.png fits it before and after" in said) == (orientation in (2, 3, 4))


def test_a_square_photo_that_exif_turns_makes_its_mask_uncertain(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg", exif=exif)
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    load_mask(ImageRecord(tmp_path / "photo.jpg", "disc", "test", True, "cut", (tmp_path / "mask.png",)))
    assert "warning" in capsys.readouterr().err


def test_small_numbers_are_kept_for_the_papers_rule(record, marked):
    small = record(Image.fromarray(two(marked, 1, 60)))
    assert np.array_equal(own_values(small, load_mask(small)), two(marked, 1, 60))
    large = record(Image.fromarray(two(marked, 1, 200)))
    assert set(np.unique(own_values(large, load_mask(large)))) == {0, 255}
