"""Anomaly maps as pictures, on a fixed scale that belongs to the threshold: a good part stays almost unpainted."""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.datasets.transforms import to_rgb
from anomalygpt.inference.regions import PEAK_FRACTION

FAINT = 0.25  # how much of the photo a colour covers just below the threshold
OPAQUE = 0.45, 0.75  # and from the threshold to the largest values
DIMMED = 0.75  # brightness of the photo around regions
DARK, LIGHT = (20, 20, 20), (255, 255, 255)


def overlay(
    photo: Image.Image, anomaly_map: NDArray[np.float32], threshold: float, regions: tuple[RegionFinding, ...] = ()
) -> Image.Image:
    """The photo with its map laid over it, and a frame with a number around each region.

    A value is coloured by value / (value + threshold). Colours above one half are those of regions: without any, no
    pixel looks anomalous; where the map of a region is nowhere above the threshold, its own lower one counts.

    Args:
        photo: the upright photo, of the map's size or smaller.
        anomaly_map: (height, width).
        regions: as ``regions.regions_of_verdict`` finds them at the threshold, numbered in their order.
    """
    from matplotlib import colormaps

    threshold = max(threshold, 1e-6)
    scale = photo.width / anomaly_map.shape[1]
    values = cv2.resize(anomaly_map, photo.size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if regions:
        threshold = min(threshold, PEAK_FRACTION * float(anomaly_map.max()))
    else:
        values = np.minimum(values, threshold)
    heat = values / (values + threshold)
    above = heat > 0.5
    low, high = OPAQUE
    cover = np.where(above, low + (high - low) * (heat - 0.5) / 0.25, FAINT * (heat - 1 / 3) * 6).clip(0, high)[
        ..., None
    ]
    colours = colormaps["turbo"](0.55 + 0.4 * ((heat - 1 / 3) / (0.75 - 1 / 3)).clip(0, 1))[..., :3] * 255
    pixels = np.asarray(to_rgb(photo), dtype=np.float32)
    if regions:
        grey = pixels.mean(axis=-1, keepdims=True)
        pixels = np.where(above[..., None], pixels, DIMMED * (0.5 * pixels + 0.5 * grey))
    picture = Image.fromarray((pixels * (1 - cover) + colours * cover).astype(np.uint8))
    for number, region in enumerate(regions, start=1):
        _frame(picture, tuple(round(scale * edge) for edge in region.box), str(number))
    return picture


def _frame(picture: Image.Image, box: tuple[int, ...], name: str) -> None:
    """Draws a dark and a light frame around a box, so that it is visible on any photo, and its name at a corner."""
    draw, width = ImageDraw.Draw(picture), max(1, round(min(picture.size) / 250))
    left, top, right, bottom = box
    for outset, colour in ((2 * width, DARK), (width, LIGHT)):
        upper_left = max(0, left - outset), max(0, top - outset)
        lower_right = min(picture.width, right + outset) - 1, min(picture.height, bottom + outset) - 1
        draw.rectangle((*upper_left, *lower_right), outline=colour, width=width)
    side = min(picture.size) / 22
    if side < 8:  # too small for a number
        return
    font = ImageFont.load_default(size=side)
    _, _, text_width, text_height = font.getbbox(name)
    x, y = max(0, left - 2 * width), max(0, top - 2 * width - text_height - 4 * width)
    draw.rectangle(
        (x, y, x + text_width + 4 * width, y + text_height + 4 * width), fill=LIGHT, outline=DARK, width=width
    )
    draw.text((x + 2 * width, y + width), name, fill=DARK, font=font)
