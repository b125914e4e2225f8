"""Reads masks of any coding, one file or several of a photo, on the pixels of the upright photo."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from anomalygpt.datasets.annotations import draw_shapes
from anomalygpt.datasets.photos import ORIENTATION, decoding, load_image, same_shape, turned
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.errors import reading_warning

Values = NDArray[Any]  # (H, W)

LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF", "HEIF")
MOST_NUMBER = 100  # the paper's rule for VisA, > 1 % of the maximum, loses no label of up to this number
MAX_LABELS = 32  # more distinct values are grey levels, unless most of them fill areas
SOFT_THRESHOLD = 0.1  # of white; as the paper's rule for MVTec-AD
CRACK_SEGMENTS = (2, 4)  # of CrackForest's: 1 is road, 3 undamaged road that cracks enclose, up to a third of a photo


def load_mask(record: ImageRecord) -> Image.Image:
    """What the masks of a photo mark together; ``info["coding"]`` says how they were read, such as ``binary 0/255``.

    Mode L, 0 to 255, upright, in any size of the photo's aspect ratio. Raises :class:`DatasetError`.
    """
    if not record.masks:
        raise DatasetError(f"{record.image}: has no mask")
    images, codings = zip(*(page for path in record.masks for page in _pages(path, record.image)), strict=True)
    sizes = sorted({f"{image.width} x {image.height}" for image in images})
    if len(sizes) != 1:
        raise DatasetError(f"{record.masks[0].parent}: expected masks of one size, found {', '.join(sizes)}")
    together = Image.fromarray(np.max(list(map(np.asarray, images)), axis=0))
    together.info["coding"] = ", ".join(sorted({*codings}))
    return together


def own_values(record: ImageRecord, read: Image.Image) -> Image.Image:
    """The numbers of a mask that holds small ones (mode L), else ``read``, what :func:`load_mask` gives."""
    values = np.asarray(ImageOps.exif_transpose(_open(record.masks[0])[0][0]))
    is_alike = len(record.masks) == 1 and values.dtype == np.uint8 and values.shape == read.size[::-1]
    return Image.fromarray(values) if is_alike and values.max() < MOST_NUMBER else read


def _pages(path: Path, photo: Path) -> Iterator[tuple[Image.Image, str]]:
    """Each page's marked pixels as mode L, turned as the photo is, and how they were read."""
    stored, orientation = _stored_size(photo)
    shown = stored[::-1] if orientation >= 5 else stored
    kind = path.suffix.lower()
    if kind == ".mat":
        yield read_cracks(path), f"segments {' and '.join(map(str, CRACK_SEGMENTS))}"
        return
    is_drawn = kind in (".json", ".txt")
    with decoding(path, "a mask"):
        pages, is_lossy = ([draw_shapes(path, photo, shown)], False) if is_drawn else _open(path)
    for page in pages:
        with decoding(path, "a mask"):
            levels, coding = _levels(page, is_lossy)
        coding = f"shapes in {kind}" if is_drawn else coding
        own = page.getexif().get(ORIENTATION, 1)
        mask = turned(Image.fromarray(levels).convert("L"), own)
        fits_stored = orientation > 1 and own not in range(2, 9) and same_shape(mask.size, stored)
        if same_shape(mask.size, shown):
            if fits_stored:
                said = f"EXIF turns the photo, and {path.name} fits it before and after; taken as drawn on the upright"
                reading_warning(f"{photo}: {said} photo (save the photo upright to be sure)")
            yield mask, coding
        elif fits_stored:
            yield turned(mask, orientation), f"{coding}, turned as the photo"
        else:
            sizes = f"{mask.width} x {mask.height} pixels, and its photo {photo.name} {shown[0]} x {shown[1]}"
            raise DatasetError(f"{path}: {sizes}; expected the same aspect ratio")


def _open(path: Path) -> tuple[list[Image.Image], bool]:
    """All pages, and whether the file's format changes values. Raises DatasetError if it can't be read."""
    with decoding(path, "an image"), path.open("rb") as file, Image.open(file) as image:
        return [page.copy() for page in ImageSequence.Iterator(image)], image.format in LOSSY


def _levels(image: Image.Image, lossy: bool) -> tuple[Values, str]:
    """What an image marks, bool or uint8 from 0 to 255, and how it was read. Raises ValueError if it is ambiguous."""
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        alpha, black = pixels[..., 3], ~pixels[..., :3].any(axis=-1)
        if alpha.min() < alpha.max():
            solid = np.extract(alpha > 127, black)
            if solid.any() and not solid.all():
                raise ValueError("both the colours and the alpha channel mark pixels; save it without alpha")
            return _grey(alpha, lossy)[0], "alpha"
        return _colours(pixels[..., :3], lossy)
    if image.mode == "P":
        return _palette(image, lossy)
    if len(image.getbands()) == 1:
        return _grey(np.asarray(image.convert("L") if image.mode == "1" else image), lossy)
    return _colours(np.asarray(image.convert("RGB")), lossy)


def _palette(image: Image.Image, lossy: bool) -> tuple[Values, str]:
    """Colours where one of them is black, else the numbers of labels."""
    indices, shown = np.asarray(image), np.asarray(image.convert("RGB"))
    used, first, counts = np.unique(indices, return_index=True, return_counts=True)
    colours = shown.reshape(-1, 3)[first]
    black = (colours == 0).all(axis=1)
    if len(np.unique(colours, axis=0)) < len(used) or (used[0] == 0 and not black.any()):  # numbers, not colours
        return _grey(indices, lossy)
    if used[0] == 0 and not black[0] and counts[0] >= counts[black].max():
        raise ValueError("the background may be black or the palette's number 0; save it as 0 and 255")
    return _colours(shown, lossy)


def _colours(rgb: Values, lossy: bool) -> tuple[Values, str]:
    """(H, W, 3): all but the background's colour is marked. It is black, or what covers more than half."""
    if (rgb == rgb[..., :1]).all():
        return _grey(rgb[..., 0], lossy)
    packed = rgb.astype(np.int32) @ (65536, 256, 1)
    found, first, counts = np.unique(packed, return_index=True, return_counts=True)
    if len(found) == 1:
        raise ValueError("one colour alone, so nothing tells a defect from the background")
    few, most = len(found) <= MAX_LABELS and not lossy, int(counts.argmax())
    has_black = found[0] == 0 and (few or counts[0] * 10 > packed.size or most == 0)
    if not has_black and counts[most] * 2 <= packed.size:
        raise ValueError("no black, and no colour covers more than half; expected a black background")
    background = rgb.reshape(-1, 3)[first[0 if has_black else most]].astype(np.int16)
    distance = np.abs(rgb - background).max(axis=-1)
    # JPEG halves the resolution of colour, so that edges bleed.
    threshold = 0 if few else distance.max() / 4 if lossy else 255 * SOFT_THRESHOLD
    name = "({}, {}, {})".format(*background) if background.any() else "black"
    return distance > threshold, f"colours on {name}"


def _grey(values: Values, lossy: bool) -> tuple[Values, str]:
    """Numbers of any range: two values, labels above a background, or the grey levels of a mask with soft edges."""
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("holds negative values or NaN; expected a mask whose background is 0")
    found, counts = np.unique(values, return_counts=True)
    low, high = found[0], found[-1]
    if len(found) <= 2 and (low == 0 or len(found) == 1):
        return values > 0, f"binary 0/{high:g}" if high else "nothing marked"
    if not lossy and (len(found) <= MAX_LABELS or _fills_areas(values, low, high)):
        if low > 0 and counts[0] * 2 <= values.size:
            raise ValueError(f"no value is 0 and the lowest, {low:g}, covers less than half; expected background 0")
        return values > low, f"labels > {low:g}"
    if values.dtype != np.uint8 or high < MAX_LABELS:
        scaled = values.astype(np.float64) * (255 / high)
        return (scaled > 127 if high < MAX_LABELS and lossy else scaled.astype(np.uint8)), "grey levels"
    return values, "grey levels"


def _fills_areas(values: Values, low: float, high: float) -> bool:
    """Whether most pixels between the lowest and the highest value equal their neighbour, as those of labels do."""
    between = ((values > low) & (values < high))[:, :-1]
    return bool(between.any() and (values[:, :-1] == values[:, 1:])[between].mean() > 0.5)


def _stored_size(photo: Path) -> tuple[tuple[int, int], int]:
    """A photo's (width, height) before it is turned upright, and its EXIF orientation, 1 to 8."""
    try:
        with Image.open(photo) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return getattr(image, "_tile_size", image.size), orientation if orientation in range(1, 9) else 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return load_image(photo).size, 1


def read_cracks(path: Path) -> Image.Image:
    """The cracks that CrackForest's file marks on the photo's own pixels: mode L, 0 and 255; DatasetError if none."""
    from scipy.io import loadmat  # here: it takes longer to import than everything else in this layer

    with decoding(path, "CrackForest's groundTruth.Segmentation"), path.open("rb") as file:
        segments = np.asarray(loadmat(file)["groundTruth"]["Segmentation"][0, 0])
        return Image.fromarray(np.isin(segments, CRACK_SEGMENTS)).convert("L")
