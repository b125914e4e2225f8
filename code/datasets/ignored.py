"""What is excluded from inspection on every photo: a box, or the pixels of a mask."""

import base64
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.errors import UserError

EMBEDDED = "png:"
COLOUR = (124, 116, 104)  # the mean of everyday photos


def embedded(settings: PhotoSettings) -> PhotoSettings:
    """The settings with a mask's pixels in place of its file name.

    Raises:
        UserError: the mask can't be read, or marks nothing or everything.
    """
    text = settings.ignore
    if text is None or text.startswith(EMBEDDED) or _box(text):
        return settings
    try:
        with Image.open(Path(text).expanduser()) as image:
            numbers = image.mode in ("1", "L", "P", "F") or image.mode.startswith("I")
            values = np.asarray(image if numbers else image.convert("RGB"))
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data.ignore {text}: no mask and no box left,top,right,bottom ({reason})") from error
    marked = values.reshape(*values.shape[:2], -1).max(axis=-1) > 0
    if marked.all() or not marked.any():
        raise UserError(f"data.ignore {text}: marks {'everything' if marked.all() else 'nothing'}; expected a mask")
    buffer = io.BytesIO()
    Image.fromarray(marked).save(buffer, "PNG")
    return settings.model_copy(update={"ignore": EMBEDDED + base64.b64encode(buffer.getvalue()).decode()})


def paint_ignored(photo: Image.Image, ignore: str | None) -> Image.Image:
    """The photo (RGB) with one colour where ``ignore``, a box or an embedded mask, excludes it.

    Raises:
        UserError: a box that is not inside the photo, or a mask of another aspect ratio.
    """
    if ignore is None:
        return photo
    box = _box(ignore)
    if box is None:
        mask = _mask(ignore)
        if abs(mask.width * photo.height - mask.height * photo.width) > max(photo.size):
            sizes = f"a mask of {mask.width} x {mask.height} for a photo of {photo.width} x {photo.height}"
            raise UserError(f"data.ignore: {sizes}; expected the same aspect ratio")
        mask = mask.resize(photo.size, Image.Resampling.NEAREST)
        return Image.composite(Image.new("RGB", photo.size, COLOUR), photo, mask)
    scale = photo.size * 2 if max(box) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (round(value * side) for value, side in zip(box, scale, strict=True))
    if not (0 <= left < right <= photo.width and 0 <= top < bottom <= photo.height):
        inside = f"expected left,top,right,bottom inside a photo of {photo.width} x {photo.height}"
        raise UserError(f"data.ignore {ignore}: {inside}")
    painted = photo.copy()
    painted.paste(COLOUR, (left, top, right, bottom))
    return painted


def _box(text: str) -> tuple[float, ...] | None:
    """``left,top,right,bottom`` as numbers; None for any other text."""
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        return None
    return numbers if len(numbers) == 4 and np.isfinite(numbers).all() else None


@lru_cache(maxsize=4)
def _mask(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.removeprefix(EMBEDDED)))).convert("1")
