"""The photo reader of prediction, evaluation, training and the demo: any file to an upright 8-bit RGB photo.

What a number in a file of more than 8 bits means is taken from the settings ``data.bits`` and ``data.range``, else from
the file (sBIT, BitsPerSample, MaxSampleValue), else from its type, never from the photo's own largest value: references
and photos have to be read alike. What is not certain is reported with :func:`anomalygpt.errors.reading_warning`.
"""

import base64
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError, reading_warning

# The limits that Pillow has by default: of a photo that is decoded completely, and of one that is read at reduced size.
MOST_PIXELS, MOST_PIXELS_REDUCED = 178_956_970, 2**30
Image.MAX_IMAGE_PIXELS = MOST_PIXELS_REDUCED // 2  # Pillow refuses twice as many
warnings.filterwarnings("ignore", module=r"PIL\.")  # about sizes and odd metadata of files that can be read
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its errors are reported as exceptions
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
FLOAT_RANGES = (1, 255, 65535)  # that photos of floating-point numbers have
INSIDE = 0.99  # of a photo's values lie in the range that is taken for floating-point numbers
IGNORED_COLOUR = (124, 116, 104)  # the mean of everyday photos
EMBEDDED_MASK = "png:"
ORIENTATION = 0x0112
_settings = PhotoSettings()


def configure(settings: PhotoSettings) -> None:
    """Sets how photos are read from now on, where :func:`load_image` is given no other settings."""
    global _settings
    _settings = PhotoSettings(**{name: getattr(settings, name) for name in PhotoSettings.model_fields})


def current_settings() -> PhotoSettings:
    """How photos are read, with a mask of ignored pixels embedded, so that it does not depend on a file."""
    mask = _settings.ignore
    if mask is None or mask.startswith(EMBEDDED_MASK) or _box(mask):
        return _settings
    buffer = io.BytesIO()
    Image.fromarray(_mask(mask)).save(buffer, "PNG")
    text = EMBEDDED_MASK + base64.b64encode(buffer.getvalue()).decode()
    return _settings.model_copy(update={"ignore": text})


def load_image(path: Path, settings: PhotoSettings | None = None) -> Image.Image:
    """The photo at ``path``, upright 8-bit RGB; ``info["source"]`` is its path.

    Args:
        settings: by default those of :func:`configure`.

    Raises:
        DatasetError: missing, truncated, no image, too large, or values of unknown meaning.
    """
    path, settings = Path(path), settings or _settings
    with _opened(path, settings) as image:
        _warn_of_pages(path, image)
        samples = _deep_samples(path, image)
        if samples is None:
            photo = _reduced(image, settings) if image.mode in ("L", "RGB", "CMYK") else image
            photo = to_rgb(photo)
        else:
            photo = _turned(_eight_bits(*samples, str(path), settings), image.getexif().get(ORIENTATION))
    photo = _reduced(photo, settings)
    if settings.ignore:
        pixels = np.array(photo)
        pixels[_ignored(settings.ignore, photo.size)] = IGNORED_COLOUR
        photo = Image.fromarray(pixels)
    photo.info = {"source": str(path)}
    return photo


def open_image(path: Path) -> Image.Image:
    """An upright image in its own mode. Raises :class:`DatasetError` if it is missing, truncated or no image."""
    with _opened(Path(path), _settings) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB: grey is repeated, transparency is put on white.

    Mode I;16 holds 0..65535. Of modes I and F nothing is known but the values: 8, 16 or 32 bits, or 0..1, 0..255 or
    0..65535, with a warning where that is a guess.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(np.asarray(image), 32 if image.mode == "I" else 16, None, "the photo", PhotoSettings())
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _opened(path: Path, settings: PhotoSettings) -> Iterator[Image.Image]:
    """Opens an image file. Raises DatasetError if it can't be opened, is too large, or if the body can't decode it."""
    try:
        _need_heif(path)
        with _header(path) as image:
            width, height = image.size
            if width * height > MOST_PIXELS and settings.max_side is None:
                raise DatasetError(
                    f"{path}: {width} x {height} pixels, above {MOST_PIXELS:,}; "
                    "the setting data.max_side=4096 reads it at reduced size"
                )
            yield image
    except FileNotFoundError:
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        raise DatasetError(f"{path}: {link}") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = " ".join(str(error).split()).replace(str(path), path.name) or type(error).__name__
        raise DatasetError(f"{path}: cannot be read as an image ({reason[:200]})") from error


@contextmanager
def _header(path: Path) -> Iterator[Any]:
    """The file opened by Pillow; a TIFF that Pillow does not know has only a size, a mode and its tags."""
    try:
        image: Any = Image.open(path)
    except Image.UnidentifiedImageError:
        if not _is_tiff(path):
            raise
        with tifffile.TiffFile(path) as file:
            yield _UnknownTiff(file.pages[0])
        return
    with image:
        if image.format == "TIFF":
            _seek_full_page(image)
        yield image


class _UnknownTiff:
    """As much of Pillow's interface as the reader needs of a TIFF page that Pillow can't decode."""

    def __init__(self, page: Any) -> None:
        self.format, self.mode, self.size = "TIFF", "", (page.imagewidth, page.imagelength)
        self.tag_v2 = {tag.code: tag.value for tag in page.tags}
        self.n_frames = 1

    def getexif(self) -> dict[int, Any]:
        return self.tag_v2

    def load(self) -> None:
        raise ValueError("a kind of TIFF that is read as a photo only")


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _need_heif(path: Path) -> None:
    """Lets Pillow read HEIC where this is one. Raises DatasetError where the library for it is absent."""
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            what = f"{path}: HEIC photos need the library pillow-heif"
            raise DatasetError(f"{what}: pip install pillow-heif, or export them as JPEG or PNG") from None
        register_heif_opener()


def _seek_full_page(image: Any) -> None:
    """Goes to a TIFF's first page that is no thumbnail, and sets ``pages`` to how many of them there are."""
    full = []
    for number in range(image.n_frames):
        image.seek(number)
        if not int(image.tag_v2.get(254, 0)) & 1:
            full.append(number)
    image.seek(full[0] if full else 0)
    image.pages = max(1, len(full))


def _warn_of_pages(path: Path, image: Any) -> None:
    pages = int(getattr(image, "pages", 0) or getattr(image, "n_frames", 1))
    if pages > 1 and image.format in ("TIFF", "GIF", "WEBP", "PNG", "AVIF"):
        _warn(str(path), "pages", f"page 1 of {pages} is read; save the others as files of their own to inspect them")


def _reduced(image: Any, settings: PhotoSettings) -> Any:
    """The image with no side above ``max_side``; a JPEG is not decoded completely for that."""
    if settings.max_side and max(image.size) > settings.max_side:
        image.thumbnail((settings.max_side, settings.max_side))
    return image


def _warn(what: str, kind: str, text: str) -> None:
    reading_warning(f"{what}: {text}", group=f"{Path(what).parent}: {kind}")


def _turned(photo: Image.Image, orientation: int | None) -> Image.Image:
    if orientation is None:
        return photo
    photo.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(photo)


def _deep_samples(path: Path, image: Any) -> tuple[NDArray[Any], int, tuple[float, float] | None] | None:
    """Values (H, W) or (H, W, C) of a file that does not hold 8-bit ones, their bits, and the range that it states.

    None for a file of up to 8 bits, which Pillow reads.
    """
    if image.format == "TIFF":
        return _tiff_samples(path, image)
    if image.format == "PNG" and str(image.tile[0][3] if image.tile else "").endswith(";16B"):
        values = np.asarray(image) if image.mode.startswith("I") else _with_opencv(path)
        return values, 16, _significant_range(path, values)
    if image.mode.startswith("I"):  # Pillow scales JPEG 2000 and PGM to 16 bits
        return np.asarray(image), 16, (0, 65535)
    return None


def _significant_range(path: Path, values: NDArray[Any]) -> tuple[float, float] | None:
    """The range of a 16-bit PNG with an sBIT of fewer bits, whose values are small, or scaled to 16 as PNG wants it."""
    data = path.read_bytes().partition(b"IDAT")[0]
    found = re.search(rb"\0\0\0[\1-\4]sBIT(.)", data, re.DOTALL)
    if found is None or not 8 <= found[1][0] < 16:
        return None
    bits = found[1][0]
    scaled = not np.any(values & (2 ** (16 - bits) - 1)) and bool(values.any())
    return (0, 65535) if values.max() >= 2**bits or scaled else (0, 2**bits - 1)


def _tiff_samples(path: Path, image: Any) -> tuple[NDArray[Any], int, tuple[float, float] | None] | None:
    tags = image.tag_v2
    bits, kind = (_first(tags.get(tag, default)) for tag, default in ((258, 1), (339, 1)))
    if image.mode and bits <= 8 and kind == 1:
        return None
    values = _tiff_values(path, image.tell() if image.mode else 0, bits, int(_first(tags.get(277, 1))))
    stated = _stated_range(tags, values)
    if tags.get(262) == 0:  # WhiteIsZero
        white = stated[1] if stated else 2**bits - 1
        if kind != 1 or (not stated and values.max() < 2 ** (bits - 2)):
            raise DatasetError(f"{path}: a TIFF of {bits} bits whose zero is white; save it with zero as black")
        values = (white - values).astype(values.dtype)
    return values, bits, stated


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _stated_range(tags: Any, values: NDArray[Any]) -> tuple[float, float] | None:
    """The range of TIFF's tags; None where they are the photo's own extremes, as statistics programs write them."""
    first, last = (340, 341) if 341 in tags else (280, 281)
    if last not in tags or not np.isfinite(values).any():
        return None
    low, high = float(_first(tags.get(first, 0))), float(_first(tags[last]))
    smallest, largest = float(np.nanmin(values)), float(np.nanmax(values))
    is_full_scale = high in (2.0 ** np.arange(65) - 1)
    if high <= low or largest > high or ((low, high) == (smallest, largest) and not is_full_scale):
        return None
    return (0.0 if smallest >= 0 and np.issubdtype(values.dtype, np.unsignedinteger) else low), high


def _tiff_values(path: Path, page: int, bits: int, channels: int) -> NDArray[Any]:
    """A TIFF page's numbers. (Pillow misreads compressed big-endian ones, and drops bits of those in colour.)"""
    try:
        with tifffile.TiffFile(path) as file:
            chosen: Any = file.pages[page]
            values = chosen.asarray()
            planar = chosen.planarconfig == 2 and values.ndim == 3
        return np.moveaxis(values, 0, -1) if planar else values
    except Exception as error:
        if "imagecodecs" not in str(error) or page or channels == 2:
            raise
    values = _with_opencv(path)
    return values >> (16 - bits) if bits in (10, 12, 14) else values


def _with_opencv(path: Path) -> NDArray[Any]:
    """Values of a 16-bit PNG or compressed TIFF in colour, of which Pillow drops the lower eight bits."""
    values: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV can't decode it")
    return values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _eight_bits(
    values: NDArray[Any], bits: int, stated: tuple[float, float] | None, what: str, settings: PhotoSettings
) -> Image.Image:
    """Values (H, W) or (H, W, C) -> RGB. Raises DatasetError for ones whose meaning is not known."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 2, 3, 4)):
        raise DatasetError(f"{what}: an array of shape {values.shape}; expected one to four channels")
    if not values.size:
        raise DatasetError(f"{what}: has no pixels")
    values = _finite(values, what)
    if np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    low, high = settings.value_range or stated or _usual_range(values, bits, what)
    smallest, largest = float(values.min()), float(values.max())
    if settings.value_range and (smallest < low or largest > high):
        found = f"values from {smallest:g} to {largest:g}"
        _warn(what, "range", f"{found} lie outside {low:g}..{high:g}, which data.bits or data.range states; cut off")
    values = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    if settings.max_side and max(values.shape[:2]) > settings.max_side:
        share = settings.max_side / max(values.shape[:2])
        height, width = (max(1, round(side * share)) for side in values.shape[:2])
        values = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)
    scaled = (values - low) * (255 / (high - low))
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _finite(values: NDArray[Any], what: str) -> NDArray[Any]:
    """The values (H, W) or (H, W, C), with the nearest finite pixel in place of one with NaN or infinity."""
    broken = ~np.isfinite(values)
    if not broken.any():
        return values
    pixels = broken if broken.ndim == 2 else broken.any(axis=2)
    if pixels.all():
        raise DatasetError(f"{what}: no value is finite, all are NaN or infinite")
    _warn(what, "NaN", f"{int(pixels.sum())} of {pixels.size} pixels are NaN or infinite; the nearest others are taken")
    nearest = ndimage.distance_transform_edt(pixels, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def _usual_range(values: NDArray[Any], bits: int, what: str) -> tuple[float, float]:
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


def _box(text: str) -> tuple[float, ...] | None:
    """``left,top,right,bottom`` as numbers; None for any other text."""
    parts = text.split(",")
    try:
        return tuple(map(float, parts)) if len(parts) == 4 else None
    except ValueError:
        return None


@lru_cache(maxsize=4)
def _mask(text: str) -> NDArray[np.bool_]:
    """A mask file, or an embedded one, as (H, W) bool."""
    mask: Image.Image
    if text.startswith(EMBEDDED_MASK):
        mask = Image.open(io.BytesIO(base64.b64decode(text.removeprefix(EMBEDDED_MASK))))
    else:
        mask = open_image(Path(text).expanduser())
    return np.asarray(mask.convert("L")) > 0


def _ignored(text: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (H, W) of a photo of ``size`` (width, height) that a box or a mask excludes from inspection."""
    width, height = size
    box = _box(text)
    if box is None:
        mask = Image.fromarray(_mask(text))
        if abs(mask.width * height - mask.height * width) > max(width, height):
            raise UserError(f"data.ignore: a mask of {mask.width} x {mask.height} for a photo of {width} x {height}")
        return np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    left, top, right, bottom = (
        round(value * side) if max(box) <= 1 else round(value)
        for value, side in zip(box, (width, height) * 2, strict=True)
    )
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(f"data.ignore {text}: expected left,top,right,bottom inside a photo of {width} x {height}")
    flags = np.zeros((height, width), bool)
    flags[top:bottom, left:right] = True
    return flags
