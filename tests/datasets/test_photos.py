"""The photo reader.

``READER_EXAMPLES=100000 python -m pytest --timeout 0 tests/datasets/test_photos.py`` tries more than the suite.
"""

import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.photos import configure, current_settings, load_image, to_rgb, turned
from anomalygpt.datasets.records import DatasetError, find_photos, list_images
from anomalygpt.errors import UserError, set_strict

many = settings(
    max_examples=int(os.environ.get("READER_EXAMPLES", "1000")),  # two tests
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


@pytest.fixture(autouse=True)
def warnings_anew() -> Iterator[None]:
    set_strict(False)
    yield
    set_strict(False)


def ramp(height: int = 16, width: int = 16) -> np.ndarray:
    """Every grey level from 0 to 255, uint8."""
    return np.linspace(0, 255, height * width).round().astype(np.uint8).reshape(height, width)


def scaled(grey: np.ndarray, top: float, dtype: Any = np.uint16) -> np.ndarray:
    """8-bit grey levels on the scale 0..top."""
    values = grey / 255 * top
    return values.astype(dtype) if np.issubdtype(dtype, np.floating) else values.round().astype(dtype)


def grey_of(path: Path, photo_settings: PhotoSettings | None = None) -> np.ndarray:
    return np.asarray(load_image(path, photo_settings))[..., 0]


def significant(bits: int) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add(b"sBIT", bytes([bits]))
    return info


def packed(values: np.ndarray, bits: int) -> bytes:
    """Each row's values one after the other, as TIFF packs them."""
    flags = (values[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(flags.astype(np.uint8).reshape(len(values), -1), axis=1).tobytes()


def bare_tiff(path: Path, size: tuple[int, int], data: bytes, **tags: int) -> None:
    """A little-endian grey TIFF. ``tags``: BitsPerSample and others by number, as in ``t258=12``."""
    width, height = size
    all_tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    all_tags |= {int(name[1:]): value for name, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, all_tags[tag]) for tag in sorted(all_tags))
    data += b"\0" * (len(data) % 2)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(all_tags)) + entries + bytes(4)
    )


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_photos_of_few_bits_are_read_by_what_the_file_states(
    tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    values = scaled(ramp(), 2**bits - 1)
    Image.fromarray(values).save(tmp_path / "marked.png", pnginfo=significant(bits))
    # PNG's own rule: the significant bits are the upper ones
    Image.fromarray(values << (16 - bits)).save(tmp_path / "upper.png", pnginfo=significant(bits))
    bare_tiff(tmp_path / "packed.tif", (16, 16), packed(values, bits), t258=bits)
    bare_tiff(tmp_path / "most.tif", (16, 16), values.tobytes(), t281=2**bits - 1)
    (tmp_path / "most.pgm").write_bytes(b"P5 16 16 %d\n" % (2**bits - 1) + values.astype(">u2").tobytes())
    for path in list_images(tmp_path):
        assert np.abs(grey_of(path).astype(int) - ramp()).max() <= 1, path.name
    assert capsys.readouterr().err == ""


def test_unmarked_photo_of_few_bits_is_reported_and_read_by_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(scaled(ramp(), 4095)).save(path)
    assert grey_of(path).max() == 16
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: values from 0 to 4095 use 12 of 16 bits") and "data.bits=12" in line
    assert np.abs(grey_of(path, PhotoSettings(bits=12)).astype(int) - ramp()).max() <= 1
    grey_of(path, PhotoSettings(bits=16))
    assert capsys.readouterr().err == ""
    grey_of(path, PhotoSettings(bits=10))
    assert "lie outside 0..1023" in capsys.readouterr().err
    set_strict(True)
    with pytest.raises(UserError, match=r"photo\.png.*data\.bits=12"):
        load_image(path)


def test_scale_does_not_depend_on_the_single_photo(tmp_path: Path) -> None:
    for number, top in enumerate((255, 1000, 4095)):
        Image.fromarray(np.full((8, 8), top, np.uint16)).save(tmp_path / f"{number}.png")
    levels = [int(grey_of(path, PhotoSettings(bits=12)).max()) for path in list_images(tmp_path)]
    assert levels == [round(255 * top / 4095) for top in (255, 1000, 4095)]


def test_colours_of_sixteen_bits_keep_their_lower_bits(tmp_path: Path) -> None:
    grey = scaled(ramp(), 4095)
    colours = np.stack([grey, grey[::-1], grey.T], axis=-1)
    expected = np.stack([ramp(), ramp()[::-1], ramp().T], axis=-1).astype(int)
    tifffile.imwrite(tmp_path / "chunky.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(colours, -1, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "deflated.tif", colours, photometric="rgb", compression="zlib", byteorder=">")
    import cv2

    cv2.imwrite(str(tmp_path / "colours.png"), colours[..., ::-1])
    cv2.imwrite(str(tmp_path / "lzw.tif"), colours[..., ::-1])  # OpenCV's compression is LZW
    paths = list_images(tmp_path)
    assert len(paths) == 5
    for path in paths:
        pixels = np.asarray(load_image(path, PhotoSettings(bits=12)))
        assert np.abs(pixels.astype(int) - expected).max() <= 1, path.name


def test_dark_floating_point_values_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "photo.tif", np.float32(ramp() / 255 / 20))
    load_image(tmp_path / "photo.tif")
    assert "the range 0..1 is taken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.where(np.arange(256).reshape(16, 16) == 0, np.nan, ramp() / 255), "1 of 256 pixels are NaN or infinite"),
        (np.where(np.arange(256).reshape(16, 16) < 2, -0.1, ramp() / 255), "the range 0..1 is taken"),
        (ramp().astype(float), "the range 0..255 is taken"),
    ],
)
def test_odd_floating_point_values_are_reported(
    tmp_path: Path, values: np.ndarray, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(tmp_path / "photo.tif", values.astype(np.float32))
    assert np.abs(grey_of(tmp_path / "photo.tif").astype(int) - ramp())[1:].max() <= 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line and "photo.tif" in line


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int8, np.float32, np.float16])
def test_negative_values_need_a_range(tmp_path: Path, dtype: Any) -> None:
    values = (ramp().astype(int) - 128).astype(dtype)
    tifffile.imwrite(tmp_path / "photo.tif", values)
    with pytest.raises(DatasetError, match=r"photo\.tif: .*-128 to 127.*data\.range=\[low, high\]"):
        load_image(tmp_path / "photo.tif")
    grey = grey_of(tmp_path / "photo.tif", PhotoSettings(range=(-128, 127)))
    assert np.array_equal(grey, ramp())


def test_tags_that_are_the_photos_own_extremes_are_no_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = scaled(ramp(), 3000) + 100
    bare_tiff(tmp_path / "photo.tif", (16, 16), values.tobytes(), t280=100, t281=3100)
    assert grey_of(tmp_path / "photo.tif").max() == round(3100 / 257)
    assert "12 of 16 bits" in capsys.readouterr().err


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", 65535 - scaled(ramp(), 65535), photometric="miniswhite")
    tifffile.imwrite(tmp_path / "plain.tif", 255 - ramp(), photometric="miniswhite")
    for path in list_images(tmp_path):
        assert np.abs(grey_of(path).astype(int) - ramp()).max() <= 1, path.name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"deep": True, "compression": "tiff_lzw"}])
def test_tiffs_are_turned_once(tmp_path: Path, orientation: int, options: dict[str, Any]) -> None:
    options = dict(options)
    stored = ramp(12, 20)
    image = Image.fromarray(scaled(stored, 65535) if options.pop("deep", False) else stored)
    image.save(tmp_path / "a.tif", tiffinfo={274: orientation}, **options)
    upright = turned(Image.fromarray(stored), orientation)
    assert np.array_equal(grey_of(tmp_path / "a.tif"), np.asarray(upright))
    # A brightness of -1 / 0, which Pillow can't write again.
    entries = struct.pack(">HHHIHHHHIIIii", 2, 274, 3, 1, orientation, 0, 0x9203, 10, 1, 38, 0, -1, 0)
    Image.fromarray(stored).save(tmp_path / "b.png", exif=b"Exif\0\0MM\0*\0\0\0\x08" + entries)
    assert np.array_equal(grey_of(tmp_path / "b.png"), np.asarray(upright))


@pytest.mark.parametrize("photometric", ["cielab", "separated", "cfa"])
def test_deep_values_of_other_colours_are_refused(tmp_path: Path, photometric: str) -> None:
    channels = {"cielab": (3,), "separated": (4,), "cfa": ()}[photometric]
    values = np.full((8, 8, *channels), 1000, np.uint16)
    options = {"extratags": [(33421, "H", 2, (2, 2)), (33422, "B", 4, b"\0\1\1\2")]} if photometric == "cfa" else {}
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, **options)
    with pytest.raises(DatasetError, match=r"a\.tif: 16-bit .*expected grey or RGB above 8 bits"):
        load_image(tmp_path / "a.tif")


def test_a_channel_beside_colours_that_is_no_alpha_is_left_out(tmp_path: Path) -> None:
    values = np.stack([scaled(ramp(), 65535)] * 3 + [np.zeros((16, 16), np.uint16)], axis=-1)
    tifffile.imwrite(tmp_path / "infrared.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert np.abs(grey_of(tmp_path / "infrared.tif").astype(int) - ramp()).max() <= 1


def test_a_tiff_with_only_a_thumbnail_on_top_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "raw.tif", ramp()[::4, ::4], subfiletype=1)
    with pytest.raises(DatasetError, match="holds only a thumbnail"):
        load_image(tmp_path / "raw.tif")


def test_a_pgm_of_twelve_bits_is_read_alike_with_and_without_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 4095\n" + scaled(ramp(), 4095).astype(">u2").tobytes())
    for photo_settings in (PhotoSettings(), PhotoSettings(bits=12)):
        assert np.abs(grey_of(tmp_path / "a.pgm", photo_settings).astype(int) - ramp()).max() <= 1


def test_further_pages_are_counted_and_thumbnails_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.fromarray(ramp())
    for name in ("a.tif", "b.gif", "c.webp", "d.apng"):
        set_strict(False)  # a new run
        options = {"format": "PNG"} if name.endswith("apng") else {}
        page.save(tmp_path / name, save_all=True, append_images=[Image.fromarray(ramp().T)], **options)
        load_image(tmp_path / name)
        assert f"{name}: page 1 of 2 is read" in capsys.readouterr().err
    with tifffile.TiffWriter(tmp_path / "e.tif") as file:
        file.write(ramp()[::4, ::4], subfiletype=1)
        file.write(ramp())
    assert np.array_equal(grey_of(tmp_path / "e.tif"), ramp())
    assert capsys.readouterr().err == ""


def huge(path: Path) -> None:
    """A photo of which only the header is huge."""
    Image.fromarray(ramp()).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 16384, 16384)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))


def test_large_photos_are_read_at_reduced_size_by_a_setting(tmp_path: Path) -> None:
    huge(tmp_path / "huge.png")
    with pytest.raises(DatasetError, match=r"16384 x 16384 .*data\.max_side="):
        load_image(tmp_path / "huge.png")
    with pytest.raises(DatasetError, match="cannot be read as an image"):  # no longer refused, but the rest is absent
        load_image(tmp_path / "huge.png", PhotoSettings(max_side=512))
    wide = np.tile(ramp(), (8, 24))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide).save(tmp_path / "wide.jpg")
    Image.fromarray(wide.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("wide.png", "wide.jpg", "deep.png"):
        photo = load_image(tmp_path / name, PhotoSettings(max_side=96))
        assert photo.size == (96, 32)
        assert abs(float(np.asarray(photo).mean()) - wide.mean()) < 3


def test_ignored_pixels_are_painted_alike_on_every_photo(tmp_path: Path) -> None:
    for number, level in enumerate((10, 200)):
        Image.new("L", (40, 20), level).save(tmp_path / f"{number}.png")
    mask = np.zeros((20, 40), np.uint8)
    mask[5:10, 20:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.gif")
    configure(PhotoSettings(ignore=str(tmp_path / "mask.gif")))
    kept = current_settings()
    (tmp_path / "mask.gif").unlink()
    for ignore in ("20,5,30,10", "0.5,0.25,0.75,0.5", kept.ignore):
        photos = [np.asarray(load_image(tmp_path / f"{n}.png", PhotoSettings(ignore=ignore))) for n in range(2)]
        assert np.array_equal(np.any(photos[0] != photos[1], axis=-1), mask == 0)
    for wrong in ("20,5,50,10", "30,5,20,10", "0,0,1,1"):
        with pytest.raises(UserError, match=r"data\.ignore .*40 x 20"):
            load_image(tmp_path / "0.png", PhotoSettings(ignore=wrong))
    Image.new("L", (40, 20)).save(tmp_path / "empty.png")
    for wrong, words in (
        ("nowhere.png", "no mask and no box"),
        ("nan,0,1,1", "no mask and no box"),
        (str(tmp_path / "empty.png"), "marks nothing"),
    ):
        with pytest.raises(UserError, match=words):
            configure(PhotoSettings(ignore=wrong))


def test_heic_names_the_library_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"  # the suffix does not matter
    try:
        import pillow_heif
    except ImportError:
        path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        with pytest.raises(DatasetError, match=r"photo\.jpg: HEIC .*pip install pillow-heif"):
            load_image(path)
        return
    pillow_heif.register_heif_opener()
    Image.fromarray(ramp(64, 64)).convert("RGB").save(path, format="HEIF", quality=95)
    assert np.abs(grey_of(path).astype(int) - ramp(64, 64)).mean() < 3


def test_dangling_link_is_named_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "photo.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DatasetError, match=r"photo\.png: a link to .*gone\.png, which is not there"):
        load_image(tmp_path / "photo.png")


@dataclass
class Written:
    """A file, what its photo shows, and the settings under which it can be read."""

    path: Path
    expected: np.ndarray  # (H, W, 3) uint8
    settings: PhotoSettings


@st.composite
def photos(draw: st.DrawFn, folder: Path) -> Written:
    """A photo of any depth, coding, number of channels, pages and orientation."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    channels = draw(st.sampled_from([1, 1, 2, 3, 4]))
    shown = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    shown.flat[0] = 255  # so that the values use all bits
    coding = draw(st.sampled_from(["png", "png16", "tiff", "tiff_float", "tiff_signed", "packed", "pgm", "lossless"]))
    bits = draw(st.sampled_from([8, 9, 10, 12, 14, 16]))
    stated = draw(st.booleans())
    options = PhotoSettings()
    grey = shown[..., 0]
    if coding in ("png", "lossless"):
        kind = "png" if coding == "png" else draw(st.sampled_from(["webp", "bmp", "tif", "jp2", "gif"]))
        used = shown[..., 0] if kind in ("gif", "jp2") else shown[..., :3] if kind == "bmp" else shown
        if used.ndim == 3 and (used.shape[2] == 1 or (used.shape[2] == 2 and kind in ("webp", "bmp", "tif"))):
            used = used[..., 0]
        path, shown = folder / f"photo.{kind}", used
        Image.fromarray(used).save(path, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    elif coding == "png16":
        path, shown = folder / "photo.png", grey
        info = significant(bits) if stated and 8 < bits < 16 else None
        options = PhotoSettings() if info or bits == 16 else PhotoSettings(bits=bits)
        Image.fromarray(scaled(grey, 2**bits - 1)).save(path, pnginfo=info)
    elif coding == "packed":
        bits = draw(st.sampled_from([10, 12, 14]))
        path, shown = folder / "photo.tif", grey
        bare_tiff(path, (width, height), packed(scaled(grey, 2**bits - 1), bits), t258=bits)
    elif coding == "pgm":
        path, shown = folder / "photo.pgm", grey
        order = np.dtype(">u2") if bits > 8 else np.uint8
        path.write_bytes(b"P5 %d %d %d\n" % (width, height, 2**bits - 1) + scaled(grey, 2**bits - 1, order).tobytes())
    else:
        path = folder / "photo.tif"
        low, top = (0.0, 1.0) if coding == "tiff_float" and stated else (-500.0, 3000.0)
        dtype: Any = np.uint16
        if coding == "tiff":
            low, top = 0.0, 2.0**bits - 1
            options = PhotoSettings(bits=bits) if bits < 16 else options
        elif coding == "tiff_float":
            dtype = draw(st.sampled_from([np.float32, np.float64]))
        else:
            dtype = draw(st.sampled_from([np.int16, np.int32]))
        if coding != "tiff" and (low, top) != (0.0, 1.0):
            options = PhotoSettings(range=(low, top))
        values = low + shown / 255 * (top - low)
        values = (values if coding == "tiff_float" else values.round()).astype(dtype)
        values, shown = (values[..., 0], shown[..., 0]) if channels in (1, 2) else (values, shown)
        form: dict[str, Any] = {"photometric": "rgb" if values.ndim == 3 else "minisblack"}
        form |= {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        form |= {"byteorder": draw(st.sampled_from("<>")), "compression": draw(st.sampled_from([None, "zlib"]))}
        if values.ndim == 3 and draw(st.booleans()):
            form["planarconfig"], values = "separate", np.moveaxis(values, -1, 0)
        orientation = draw(st.sampled_from([1, 3, 6, 8]))
        if orientation != 1:
            form["extratags"] = [(0x0112, "H", 1, orientation, True)]
            shown = np.rot90(shown, {3: 2, 6: -1, 8: 1}[orientation])
        with tifffile.TiffWriter(path, byteorder=form.pop("byteorder")) as file:
            for _ in range(draw(st.integers(1, 3))):
                file.write(values, **form)
    return Written(path, np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(shown)))), options)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@many
@given(data=st.data())
def test_any_photo_is_read_as_what_was_written(folder: Path, data: st.DataObject) -> None:
    written = data.draw(photos(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (np.asarray(load_image(written.path, written.settings)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == written.expected.shape
    # transparency is put on white after the rounding to 8 bits
    assert np.abs(first.astype(int) - written.expected).max(initial=0) <= 2


@many
@given(data=st.data())
def test_damaged_photo_is_one_line_or_the_same_photo_twice(folder: Path, data: st.DataObject) -> None:
    written = data.draw(photos(folder))
    content = bytearray(written.path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    written.path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    outcomes = []
    for _ in range(2):
        try:
            outcomes.append(load_image(written.path, data.draw(st.sampled_from([PhotoSettings(), written.settings]))))
        except DatasetError as error:
            assert "\n" not in str(error) and str(error).startswith(str(written.path))
            return
    assert all(photo.mode == "RGB" for photo in outcomes)


def test_what_is_not_read_in_a_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "day" / "hour").mkdir(parents=True)
    (tmp_path / "day" / "back").symlink_to(tmp_path)
    for name in ("a.png", "b.JFIF", "day/c.png", "day/hour/d.png", "results/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(ramp()).save(tmp_path / name, format="JPEG")
    for name in ("readme.txt", "photo.nef", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    assert [path.name for path in find_photos(tmp_path)] == ["a.png", "b.JFIF"]
    other, linked, deeper = capsys.readouterr().err.splitlines()
    assert linked.endswith(f"1 linked folders are not read; name them, too: {tmp_path / 'day' / 'back'}")
    assert other.endswith("1 files are not read, no photos by their names: photo.nef")
    assert "3 photos in sub-folders (day, day/hour, results) are not read; --recursive reads them" in deeper
    found = find_photos(tmp_path, recursive=True)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "a.png",
        "b.JFIF",
        "day/c.png",
        "day/hour/d.png",
        "results/e.png",
    ]


def test_results_of_an_earlier_run_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "a_overlay.png", "a_map.tiff", "b_overlay.png", "b_map.png", "c_overlay.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b_map.png", "b_overlay.png", "c_overlay.png"]
    assert "2 overlays and maps" in caplog.text
