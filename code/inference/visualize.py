"""Anomaly maps as pictures, on a fixed scale that belongs to the threshold: a good part stays almost unpainted."""

import io
from base64 import b64encode
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.datasets.photos import to_rgb
from anomalygpt.inference.regions import PEAK_FRACTION

# Of value / (value + threshold): how much of the photo a colour covers, and where in the colour map it is. A pixel is
# anomalous from one half on, which is the value at the threshold; 0.75 is three times the threshold.
FAINT = 0.25
COVER = ((1 / 3, 0.5, 0.501, 0.75), (0, FAINT, 0.45, 0.75))
COLOUR = ((1 / 3, 0.75), (0.55, 0.95))
DIMMED = 0.75  # brightness of the photo around regions
DARK, LIGHT, HIGHLIGHT = (20, 20, 20), (255, 255, 255), (0, 229, 255)


def overlay(
    photo: Image.Image,
    anomaly_map: NDArray[np.float32],
    threshold: float,
    regions: tuple[RegionFinding, ...] = (),
    opacity: float = 1,
    highlighted: int = 0,
) -> Image.Image:
    """The photo with its map (height, width) laid over it, and a frame with a number around each region.

    The photo is upright, of the map's shape at any size. ``regions`` are those of ``regions.regions_of_verdict`` at the
    threshold; without any, no pixel looks anomalous, and where the map of one is nowhere above the threshold, its own
    lower one counts. ``opacity`` is the map's, 0..1; the frame of the region of number ``highlighted`` stands out.
    """
    from matplotlib import colormaps

    pixels, scale = np.asarray(to_rgb(photo), dtype=np.float32), photo.width / anomaly_map.shape[1]
    values = cv2.resize(anomaly_map, photo.size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if regions:
        threshold = min(threshold, PEAK_FRACTION * float(anomaly_map.max()))
    heat = (values / (values + max(threshold, 1e-6)))[..., None]
    if regions:
        dimmed = DIMMED * (0.5 * pixels + 0.5 * pixels.mean(axis=-1, keepdims=True))
        pixels = np.where(heat > 0.5, pixels, opacity * dimmed + (1 - opacity) * pixels)
    else:
        heat = heat.clip(max=0.5)
    cover = opacity * np.interp(heat, *COVER)
    colours = 255 * colormaps["turbo"](np.interp(heat[..., 0], *COLOUR))[..., :3]
    picture = Image.fromarray((pixels * (1 - cover) + colours * cover).astype(np.uint8))
    boxes = [tuple(round(scale * edge) for edge in region.box) for region in regions]
    for number in sorted(range(len(boxes)), key=lambda number: number + 1 == highlighted):  # that one on top
        _frame(picture, boxes, number, HIGHLIGHT if number + 1 == highlighted else LIGHT)
    return picture


def jpeg_uri(picture: Image.Image, side: int) -> str:
    """A picture of at most ``side`` x ``side`` pixels, as JPEG in a data URI."""
    small = to_rgb(picture)
    small.thumbnail((side, side))
    small.save(file := io.BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _frame(picture: Image.Image, boxes: Sequence[tuple[int, ...]], number: int, light: tuple[int, int, int]) -> None:
    """Draws a dark and a light frame around a box, visible on any photo, and its number above or below it."""
    draw, width = ImageDraw.Draw(picture), max(1, round(min(picture.size) / (250 if light == LIGHT else 120)))
    left, top, right, bottom = boxes[number]
    for outset, colour in ((2 * width, DARK), (width, light)):
        upper_left = max(0, left - outset), max(0, top - outset)
        lower_right = min(picture.width, right + outset) - 1, min(picture.height, bottom + outset) - 1
        draw.rectangle((*upper_left, *lower_right), outline=colour, width=width)
    side = min(picture.size) / 22
    if side < 8:  # too small for a number
        return
    font, name = ImageFont.load_default(size=side), str(number + 1)
    wide, high = (extent + 4 * width for extent in font.getbbox(name)[2:])
    x = max(0, min(left - 2 * width, picture.width - wide - 1))
    above, below = top - 2 * width - high - 1, min(bottom + 2 * width + 1, picture.height - high - 1)
    others = [box for box in boxes if box[0] <= x + wide and x <= box[2] and box[1] <= above + high and above <= box[3]]
    y = below if above < 0 or others else above
    draw.rectangle((x, y, x + wide, y + high), fill=light, outline=DARK, width=width)
    draw.text((x + 2 * width, y + width), name, fill=DARK, font=font)
