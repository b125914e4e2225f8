"""The one photo reader: any file to an upright 8-bit RGB photo, without what is excluded from inspection.

What numbers of more than 8 bits mean is taken from ``data.bits`` and ``data.range``, else from the file (sBIT,
MaxSampleValue), else from their type, never from the photo's own largest value: references and photos are read alike.
"""

import base64
import io
import logging
import os
import re
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.Image import Transpose
from scipy import ndimage

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError, reading, reading_warning

Values = NDArray[Any]  # (H, W) or (H, W, C)

# Pillow's limits of a photo that is decoded completely, and of one that is read at reduced size.
MOST_PIXELS, MOST_PIXELS_REDUCED = 178_956_970, 2**30
Image.MAX_IMAGE_PIXELS = MOST_PIXELS_REDUCED // 2  # Pillow refuses twice as many
warnings.filterwarnings("ignore", module=r"PIL\.")  # about sizes and odd metadata of files that can be read
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # its errors are reported as exceptions
FULL_SCALES = {2**bits - 1 for bits in range(1, 65)}
FLOAT_RANGES = (1, 255, 65535)  # that photos of floating-point numbers have
INSIDE = 0.99  # of a photo's values lie in the range that is taken for floating-point numbers
ORIENTATION = 0x0112  # EXIF's tag, and TIFF's
TURNS = {2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE}
TURNS |= {6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90}
EMBEDDED = "png:"  # before the base64 of a mask of what is ignored
IGNORED_COLOUR = (124, 116, 104)  # the mean of everyday photos
_settings = PhotoSettings()
decoding = partial(reading, kind=DatasetError)


def configure(settings: PhotoSettings) -> None:
    """Sets how photos are read from now on, where :func:`load_image` is given no other settings."""
    global _settings
    _settings = embedded(PhotoSettings(**{name: getattr(settings, name) for name in PhotoSettings.model_fields}))


def current_settings() -> PhotoSettings:
    """How photos are read; names no file."""
    return _settings


def embedded(settings: PhotoSettings) -> PhotoSettings:
    """The settings with the pixels of the mask of what is ignored in place of its name; UserError for a wrong one."""
    text = settings.ignore
    if text is None or text.startswith(EMBEDDED) or _box(text):
        return settings
    path = Path(os.path.expanduser(text))
    if not path.is_file():
        raise UserError(f"data.ignore {text}: no mask and no box left,top,right,bottom")
    with decoding(path, "a mask"), Image.open(path) as image:
        values = np.asarray(image if image.mode != "P" and len(image.getbands()) == 1 else image.convert("RGB"))
    marked = np.asarray(np.atleast_3d(values).any(axis=-1))
    if marked.all() or not marked.any():
        raise UserError(f"data.ignore {text}: marks {'everything' if marked.all() else 'nothing'}; expected a mask")
    buffer = io.BytesIO()
    Image.fromarray(marked).save(buffer, "PNG")
    return settings.model_copy(update={"ignore": EMBEDDED + base64.b64encode(buffer.getvalue()).decode()})


def load_image(path: Path, settings: PhotoSettings | None = None) -> Image.Image:
    """The photo at ``path``, upright 8-bit RGB; ``info["source"]`` is its path. Default settings: :func:`configure`'s.

    Raises :class:`DatasetError`: missing, truncated, no image, too large, or values of unknown meaning.
    """
    path, settings = Path(path), embedded(settings) if settings else _settings
    with decoding(path, "an image"):
        with path.open("rb") as file:
            start = file.read(32)
        if start[4:8] == b"ftyp" and b"avi" not in start:
            try:
                import_module("pillow_heif").register_heif_opener()
            except ImportError:
                raise DatasetError(f"{path}: HEIC needs pip install pillow-heif, or save it as JPEG") from None
        is_tiff = start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        photo = (_tiff if is_tiff else _other)(path, settings)
    if settings.max_side:
        photo.thumbnail((settings.max_side, settings.max_side))
    if settings.ignore:
        photo.paste(IGNORED_COLOUR, mask=ignored_area(photo.size, settings.ignore))
    photo.info = {"source": str(path)}
    return photo


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB, transparency on white; what modes I and F mean is guessed, with a warning."""
    image.load()
    image = turned(image, image.getexif().get(ORIENTATION, 1))
    if image.mode.startswith("I") or image.mode == "F":
        bits = 32 if image.mode == "I" else 16
        return _eight_bits(np.asarray(image), bits, None, str(image.info.get("source", "the photo")), PhotoSettings())
    front = image.convert("RGBA") if image.has_transparency_data else None
    if front and np.asarray(front.getchannel("A")).any():  # where all is transparent, that is no part of the photo
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


def _box(text: str) -> tuple[float, ...] | None:
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        return None
    return numbers if len(numbers) == 4 and np.isfinite(numbers).all() else None


def ignored_area(size: tuple[int, int], text: str) -> Image.Image:
    """What a box or an embedded mask marks of a photo of this (width, height): mode 1."""
    width, height = size
    if box := _box(text):
        scale = size * 2 if max(box) <= 1 else (1, 1, 1, 1)
        left, top, right, bottom = (round(value * side) for value, side in zip(box, scale, strict=True))
        all_of_it = (left, top, right, bottom) == (0, 0, width, height)
        if all_of_it or not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UserError(f"data.ignore {text}: expected left,top,right,bottom inside a photo of {width} x {height}")
        area = Image.new("1", size)
        area.paste(1, (left, top, right, bottom))
        return area
    mask = Image.open(io.BytesIO(base64.b64decode(text.removeprefix(EMBEDDED)))).convert("1")
    if not same_shape(mask.size, size):
        sizes = f"a mask of {mask.width} x {mask.height} for a photo of {width} x {height}"
        raise UserError(f"data.ignore: {sizes}; expected the same aspect ratio")
    return mask.resize(size, Image.Resampling.NEAREST)


def same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the aspect ratios of two (width, height) agree to a pixel of the smaller image."""
    small, large = sorted((first, second))
    return abs(small[0] * large[1] - small[1] * large[0]) <= max(large)


def _check_header(path: Path, width: int, height: int, pages: int, settings: PhotoSettings) -> None:
    if width * height > MOST_PIXELS and settings.max_side is None:
        raise DatasetError(f"{path}: {width} x {height} pixels; data.max_side=4096 reads it at reduced size")
    if pages > 1:
        _warn(str(path), "pages", f"page 1 of {pages} is read; save the others as files of their own to inspect them")


def _warn(what: str, kind: str, text: str) -> None:
    reading_warning(f"{what}: {text}", group=f"{Path(what).parent}: {kind}")


def _other(path: Path, settings: PhotoSettings) -> Image.Image:
    """Any format but TIFF."""
    with Image.open(path) as image:
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: views of the same photo
        _check_header(path, *image.size, pages, settings)
        if image.format == "PNG" and image.tile and str(image.tile[0][3]).endswith(";16B"):
            values = np.asarray(image) if image.mode.startswith("I") else _with_opencv(path)
            photo = _eight_bits(values, 16, _largest_significant(path, values), str(path), settings)
        elif image.mode.startswith("I"):  # Pillow scales JPEG 2000 and PGM to 16 bits
            if image.tile and image.tile[0][0] == "ppm":  # a PGM of 9 to 15 bits, now of 16
                settings = settings.model_copy(update={"bits": None})
            photo = _eight_bits(np.asarray(image), 16, 65535, str(path), settings)
        else:
            if settings.max_side and image.mode in ("L", "RGB", "CMYK"):
                image.thumbnail((settings.max_side, settings.max_side))  # decodes no more of a JPEG than it needs
            return to_rgb(image)
        return turned(photo, image.getexif().get(ORIENTATION, 1))


def turned(photo: Image.Image, orientation: int) -> Image.Image:
    """An image turned as EXIF's orientation (1 to 8) says, which it no longer states."""
    if orientation not in TURNS:
        return photo
    upright = photo.transpose(TURNS[orientation])
    upright.info = {name: value for name, value in photo.info.items() if name in ("source", "transparency")}
    return upright


def _largest_significant(path: Path, values: Values) -> int | None:
    """White of a 16-bit PNG with an sBIT of fewer bits, whose values are small, or scaled to 16 as PNG wants it."""
    found = re.search(rb"\0\0\0[\1-\4]sBIT(.)", path.read_bytes().partition(b"IDAT")[0], re.DOTALL)
    if found is None or not 8 <= found[1][0] < 16:
        return None
    bits = found[1][0]
    is_scaled = values.any() and not np.any(values & (2 ** (16 - bits) - 1))
    return 65535 if is_scaled or values.max() >= 2**bits else 2**bits - 1


def _with_opencv(path: Path) -> Values:
    """Values of a 16-bit PNG or TIFF in colour, of which Pillow drops the lower eight bits."""
    values: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV can't decode it")
    return values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _tiff(path: Path, settings: PhotoSettings) -> Image.Image:
    """The first page that is no thumbnail; tifffile decodes what is not 8 bits deep, of which Pillow misreads some."""
    with tifffile.TiffFile(path) as file:
        every: list[Any] = list(file.pages)
        if not (pages := [page for page in every if not page.is_reduced]):
            raise DatasetError(f"{path}: holds only a thumbnail outside of a camera's raw data; save it as TIFF or PNG")
        page = pages[0]
        tags = {tag.code: tag.value[0] if isinstance(tag.value, tuple) else tag.value for tag in page.tags}
        _check_header(path, page.imagewidth, page.imagelength, len(pages), settings)
        bits, kind = int(page.bitspersample), int(tags.get(339, 1))
        if bits <= 8 and kind == 1:
            with path.open("rb") as opened, Image.open(opened) as image:  # Pillow maps a named file by the turned size
                image.seek(every.index(page))
                return to_rgb(image)
        if tags.get(262, 1) not in (0, 1, 2):
            raise DatasetError(f"{path}: {bits}-bit {page.photometric.name}; expected grey or RGB above 8 bits")
        try:
            values = page.asarray()
            values = np.moveaxis(values, 0, -1) if page.planarconfig == 2 and values.ndim == 3 else values
        except Exception as error:
            if "imagecodecs" not in str(error) or page.index or bits > 16 or page.samplesperpixel == 2:
                raise
            values, tags[ORIENTATION] = _with_opencv(path) >> (16 - bits), 1  # it is turned already
    if tags.get(338) == 0:  # the channels above colour or grey are no alpha
        values = values[..., : 3 if tags.get(262) == 2 else 1]
    most = tags.get(341, tags.get(281))  # statistics programs write the photo's own extremes
    photo = _eight_bits(values, bits, most if most in FULL_SCALES else None, str(path), settings)
    return turned(ImageOps.invert(photo) if tags.get(262) == 0 else photo, tags.get(ORIENTATION, 1))


def _eight_bits(values: Values, bits: int, most: float | None, what: str, settings: PhotoSettings) -> Image.Image:
    """Values of ``bits`` bits -> RGB. ``most``: white, as the file states it. Raises DatasetError if it is unknown."""
    if values.ndim != 2 and values.shape[2:] not in ((1,), (2,), (3,), (4,)):
        raise DatasetError(f"{what}: an array of shape {values.shape}; expected pixels of one to four channels")
    values = _finite(values.astype(np.float32) if values.dtype == np.float16 else values, what)
    low, high = float(values.min()), float(values.max())
    found = f"values from {low:g} to {high:g}"
    if settings.value_range:
        black, white = settings.value_range
        if low < black or high > white:
            _warn(what, "range", f"{found} lie outside {black:g}..{white:g}, as data.bits or data.range say; cut off")
    else:
        black, white = 0.0, most if most and 0 <= low <= high <= most else _white_of_type(values, bits, found, what)
    numbers: NDArray[np.floating] = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    pixels = np.clip(np.rint((numbers - black) * (255 / (white - black))), 0, 255).astype(np.uint8)
    return to_rgb(Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)))


def _finite(values: Values, what: str) -> Values:
    """The values with the nearest finite pixel in place of one with NaN or infinity."""
    pixels = ~np.isfinite(np.atleast_3d(values)).all(axis=2)
    if not pixels.any():
        return values
    if pixels.all():
        raise DatasetError(f"{what}: no value is finite, all are NaN or infinite")
    _warn(what, "NaN", f"{int(pixels.sum())} of {pixels.size} pixels are NaN or infinite; the nearest others are taken")
    return values[tuple(ndimage.distance_transform_edt(pixels, return_distances=False, return_indices=True))]


def _white_of_type(values: Values, bits: int, found: str, what: str) -> float:
    """White of values of a type, 0 being black, where neither a setting nor the file states it."""
    low, high = float(values.min()), float(values.max())
    advice = "set data.range=[low, high] for references and photos alike"
    if np.issubdtype(values.dtype, np.floating):
        for top in FLOAT_RANGES:
            if ((values >= 0) & (values <= top)).mean() >= INSIDE:
                if top > 1 or low < 0 or high > 1 or high <= top / 4:
                    _warn(what, f"0..{top}", f"floating-point {found}; the range 0..{top} is taken. If wrong, {advice}")
                return top
        raise DatasetError(f"{what}: floating-point {found}, whose range is not known; {advice}")
    if low < 0:
        raise DatasetError(f"{what}: signed {found}, negative ones too, whose range is not known; {advice}")
    if bits > 16:
        taken = next(n for n in (8, 16, 32, 64) if high < 2**n)
        _warn(what, f"bits {taken}", f"{bits}-bit {found}; taken as {taken} bits. If wrong, set data.bits, or {advice}")
        return 2.0**taken - 1
    bits -= np.issubdtype(values.dtype, np.signedinteger) and values.dtype.itemsize * 8 == bits
    used = max(1, int(high).bit_length())
    if used <= bits - 2 and bits > 8:
        advice = f"which is dark. If wrong, set data.bits={max(8, used)} for references and photos alike"
        _warn(what, "bits", f"{found} use {used} of {bits} bits; read as {bits} bits, {advice}")
    return 2.0**bits - 1
