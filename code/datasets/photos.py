"""The photo reader of prediction, evaluation, training and the demo: any file to an upright 8-bit RGB photo.

What the numbers of more than 8 bits mean is taken from the settings ``data.bits`` and ``data.range``, else from the
file (sBIT, BitsPerSample, MaxSampleValue), else from their type, never from the photo's own largest value: references
and photos have to be read alike. What is not certain is reported with :func:`anomalygpt.errors.reading_warning`.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.ignored import embedded, paint_ignored
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError, reading_warning

Values = NDArray[Any]  # (H, W) or (H, W, C)
Range = tuple[float, float]  # the values of black and white

# The limits that Pillow has by default: of a photo that is decoded completely, and of one that is read at reduced size.
MOST_PIXELS, MOST_PIXELS_REDUCED = 178_956_970, 2**30
Image.MAX_IMAGE_PIXELS = MOST_PIXELS_REDUCED // 2  # Pillow refuses twice as many
warnings.filterwarnings("ignore", module=r"PIL\.")  # about sizes and odd metadata of files that can be read
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its errors are reported as exceptions
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
FLOAT_RANGES = (1, 255, 65535)  # that photos of floating-point numbers have
INSIDE = 0.99  # of a photo's values lie in the range that is taken for floating-point numbers
ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
_settings = PhotoSettings()


def configure(settings: PhotoSettings) -> None:
    """Sets how photos are read from now on, where :func:`load_image` is given no other settings."""
    global _settings
    _settings = embedded(PhotoSettings(**{name: getattr(settings, name) for name in PhotoSettings.model_fields}))


def current_settings() -> PhotoSettings:
    """How photos are read; names no file."""
    return _settings


def load_image(path: Path, settings: PhotoSettings | None = None) -> Image.Image:
    """The photo at ``path``, upright 8-bit RGB; ``info["source"]`` is its path.

    Args:
        settings: by default those of :func:`configure`.

    Raises:
        DatasetError: missing, truncated, no image, too large, or values of unknown meaning.
    """
    path, settings = Path(path), embedded(settings) if settings else _settings
    with decoding(path):
        with path.open("rb") as file:
            start = file.read(32)
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            photo = _tiff(path, settings)
        else:
            if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and b"avif" not in start:
                _register_heif(path)
            photo = _other(path, settings)
    photo = paint_ignored(_reduced(photo, settings), settings.ignore)
    photo.info = {"source": str(path)}
    return photo


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB: grey is repeated, transparency is put on white.

    Mode I;16 holds 0..65535. Of modes I and F nothing is known but the values: 8, 16 or 32 bits, or 0..1, 0..255 or
    0..65535, with a warning where that is a guess.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        bits = 32 if image.mode == "I" else 16
        return _eight_bits(np.asarray(image), bits, None, str(image.info.get("source", "the photo")), PhotoSettings())
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


@contextmanager
def decoding(path: Path, what: str = "an image") -> Iterator[None]:
    """Turns what decoders raise, which on damaged bytes is nearly anything, into a DatasetError."""
    try:
        yield
    except FileNotFoundError:
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        raise DatasetError(f"{path}: {link}") from None
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__
        raise DatasetError(f"{path}: cannot be read as {what} ({reason[:200]})") from error


def _register_heif(path: Path) -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        what = f"{path}: HEIC photos need the library pillow-heif"
        raise DatasetError(f"{what}: pip install pillow-heif, or export them as JPEG or PNG") from None
    register_heif_opener()


def _check_header(path: Path, width: int, height: int, pages: int, settings: PhotoSettings) -> None:
    if width * height > MOST_PIXELS and settings.max_side is None:
        size = f"{width} x {height} pixels, above {MOST_PIXELS:,}"
        raise DatasetError(f"{path}: {size}; the setting data.max_side=4096 reads it at reduced size")
    if pages > 1:
        _warn(str(path), "pages", f"page 1 of {pages} is read; save the others as files of their own to inspect them")


def _warn(what: str, kind: str, text: str) -> None:
    reading_warning(f"{what}: {text}", group=f"{Path(what).parent}: {kind}")


def _reduced(image: Any, settings: PhotoSettings) -> Any:
    """The image with no side above ``max_side``; a JPEG is not decoded completely for that."""
    if settings.max_side and max(image.size) > settings.max_side:
        image.thumbnail((settings.max_side, settings.max_side))
    return image


def _other(path: Path, settings: PhotoSettings) -> Image.Image:
    """Any format but TIFF."""
    with Image.open(path) as image:
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: views of the same photo
        _check_header(path, *image.size, pages, settings)
        if image.format == "PNG" and image.tile and str(image.tile[0][3]).endswith(";16B"):
            values = np.asarray(image) if image.mode.startswith("I") else _with_opencv(path)
            photo = _eight_bits(values, 16, _significant_range(path, values), str(path), settings)
        elif image.mode.startswith("I"):  # Pillow scales JPEG 2000 and PGM to 16 bits
            photo = _eight_bits(np.asarray(image), 16, (0, 65535), str(path), settings)
        else:
            return to_rgb(_reduced(image, settings) if image.mode in ("L", "RGB", "CMYK") else image)
        return _turned(photo, image.getexif().get(ORIENTATION))


def _turned(photo: Image.Image, orientation: int | None) -> Image.Image:
    if orientation is None:
        return photo
    photo.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(photo)


def _significant_range(path: Path, values: Values) -> Range | None:
    """The range of a 16-bit PNG with an sBIT of fewer bits, whose values are small, or scaled to 16 as PNG wants it."""
    found = re.search(rb"\0\0\0[\1-\4]sBIT(.)", path.read_bytes().partition(b"IDAT")[0], re.DOTALL)
    if found is None or not 8 <= found[1][0] < 16:
        return None
    bits = found[1][0]
    scaled = not np.any(values & (2 ** (16 - bits) - 1)) and bool(values.any())
    return (0, 65535) if values.max() >= 2**bits or scaled else (0, 2**bits - 1)


def _with_opencv(path: Path) -> Values:
    """Values of a 16-bit PNG or compressed TIFF in colour, of which Pillow drops the lower eight bits."""
    values: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV can't decode it")
    return values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _tiff(path: Path, settings: PhotoSettings) -> Image.Image:
    """The first page that is no thumbnail; tifffile decodes what is not 8 bits deep, of which Pillow misreads some."""
    with tifffile.TiffFile(path) as file:
        every: list[Any] = list(file.pages)
        pages = [page for page in every if not page.is_reduced] or every
        page = pages[0]
        tags = {tag.code: tag.value[0] if isinstance(tag.value, tuple) else tag.value for tag in page.tags}
        _check_header(path, page.imagewidth, page.imagelength, len(pages), settings)
        bits, kind = int(page.bitspersample), int(tags.get(339, 1))
        if bits <= 8 and kind == 1:
            with Image.open(path) as image:
                image.seek(every.index(page))
                return to_rgb(image)
        try:
            values = page.asarray()
            values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values
        except Exception as error:
            if (
                "imagecodecs" not in str(error)
                or page.index
                or bits not in (10, 12, 14, 16)
                or page.samplesperpixel == 2
            ):
                raise
            values = _with_opencv(path) >> (16 - bits)
    stated = _stated_range(tags, values)
    if tags.get(262) == 0:  # WhiteIsZero
        if kind != 1:
            raise DatasetError(f"{path}: a TIFF of signed or floating-point values whose zero is white")
        values = (stated[1] if stated else 2**bits - 1) - values.astype(np.int64)
    return _turned(_eight_bits(values, bits, stated, str(path), settings), tags.get(ORIENTATION))


def _stated_range(tags: dict[int, Any], values: Values) -> Range | None:
    """The range of TIFF's tags; None where they are the photo's own extremes, as statistics programs write them."""
    first, last = (340, 341) if 341 in tags else (280, 281)
    if last not in tags or not np.isfinite(values).any():
        return None
    low, high = float(tags.get(first, 0)), float(tags[last])
    smallest, largest = float(np.nanmin(values)), float(np.nanmax(values))
    is_full_scale = high in (2.0 ** np.arange(65) - 1)
    if high <= low or largest > high or ((low, high) == (smallest, largest) and not is_full_scale):
        return None
    return (0.0 if smallest >= 0 and np.issubdtype(values.dtype, np.unsignedinteger) else low), high


def _eight_bits(values: Values, bits: int, stated: Range | None, what: str, settings: PhotoSettings) -> Image.Image:
    """Values of ``bits`` bits, with the range that their file states -> RGB. Raises DatasetError if it is unknown."""
    if values.ndim != 2 and values.shape[2:] not in ((1,), (2,), (3,), (4,)):
        raise DatasetError(f"{what}: an array of shape {values.shape}; expected pixels of one to four channels")
    values = _finite(values.astype(np.float32) if values.dtype == np.float16 else values, what)
    low, high = settings.value_range or stated or _range_of_type(values, bits, what)
    smallest, largest = float(values.min()), float(values.max())
    if settings.value_range and (smallest < low or largest > high):
        found = f"values from {smallest:g} to {largest:g}"
        _warn(what, "range", f"{found} lie outside {low:g}..{high:g}, which data.bits or data.range states; cut off")
    numbers: NDArray[np.floating] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    pixels = np.clip(np.rint((numbers - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)))


def _finite(values: Values, what: str) -> Values:
    """The values with the nearest finite pixel in place of one with NaN or infinity."""
    broken = ~np.isfinite(values)
    if not broken.any():
        return values
    pixels = broken if broken.ndim == 2 else broken.any(axis=2)
    if pixels.all():
        raise DatasetError(f"{what}: no value is finite, all are NaN or infinite")
    _warn(what, "NaN", f"{int(pixels.sum())} of {pixels.size} pixels are NaN or infinite; the nearest others are taken")
    nearest = ndimage.distance_transform_edt(pixels, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _range_of_type(values: Values, bits: int, what: str) -> Range:
    """The range that values of a type have, where neither a setting nor the file states one."""
    low, high = float(values.min()), float(values.max())
    advice = "set data.range=[low, high] for references and photos alike"
    found = f"values from {low:g} to {high:g}"
    if np.issubdtype(values.dtype, np.floating):
        for top in FLOAT_RANGES:
            if ((values >= 0) & (values <= top)).mean() >= INSIDE:
                if top > 1 or low < 0 or high > 1:
                    _warn(what, "range", f"floating-point {found}; the range 0..{top} is taken. If wrong, {advice}")
                return 0, top
        raise DatasetError(f"{what}: floating-point {found}, whose range is not known; {advice}")
    if low < 0:
        raise DatasetError(f"{what}: signed {found}, negative ones too, whose range is not known; {advice}")
    if bits > 16:
        taken = next(n for n in (8, 16, 32, 64) if high < 2**n)
        _warn(what, "bits", f"{bits}-bit {found}; taken as {taken} bits. If wrong, set data.bits, or {advice}")
        return 0, 2**taken - 1
    bits -= np.issubdtype(values.dtype, np.signedinteger) and values.dtype.itemsize * 8 == bits
    used = max(1, int(high).bit_length())
    if used <= bits - 2 and bits > 8:
        use = f"{found} use {used} of {bits} bits; read as {bits} bits, which is dark"
        _warn(what, "bits", f"{use}. If wrong, set data.bits={max(8, used)} for references and photos alike")
    return 0, 2**bits - 1
