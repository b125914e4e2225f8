"""Anomaly maps as pictures, on a fixed scale: a normal part stays unpainted."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anomalygpt.datasets.findings import RegionFinding
from anomalygpt.datasets.photos import to_rgb
from anomalygpt.model.image_decoder import calibrate_map

OPAQUE = 0.65  # how much of the photo the hottest colour covers


def overlay(
    photo: Image.Image, anomaly_map: NDArray[np.float32], threshold: float, regions: tuple[RegionFinding, ...] = ()
) -> Image.Image:
    """The photo with its map laid over it, and a frame around each region.

    Args:
        photo: the upright photo, of the map's size.
        anomaly_map: (height, width).
    """
    from matplotlib import colormaps

    hot = calibrate_map(anomaly_map, threshold)
    colours = colormaps["turbo"](hot)[..., :3] * 255
    pixels = np.asarray(to_rgb(photo), dtype=np.float32)
    # Only what comes near the threshold is painted.
    cover = (OPAQUE * np.clip((hot - 0.25) / 0.5, 0, 1))[..., None]
    picture = Image.fromarray((pixels * (1 - cover) + colours * cover).astype(np.uint8))
    draw, width = ImageDraw.Draw(picture), max(1, round(min(picture.size) / 250))
    for left, top, right, bottom in (region.box for region in regions):
        # A dark and a light frame around a region, so that it stays visible.
        for outset, colour in ((2 * width, (20, 20, 20)), (width, (255, 255, 255))):
            upper_left = max(0, left - outset), max(0, top - outset)
            lower_right = min(picture.width, right + outset) - 1, min(picture.height, bottom + outset) - 1
            draw.rectangle((*upper_left, *lower_right), outline=colour, width=width)
    return picture
