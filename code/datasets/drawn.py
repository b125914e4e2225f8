"""Drawn anomalies: scratches, cracks, stains, holes, threads, dents and missing pieces, painted onto a normal photo.

Not in the paper: real defects are often thinner and fainter than NSA's patches, and of a kind that has a name.
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalygpt.datasets.regions import Box, bounding_box
from anomalygpt.datasets.synthesis import Flags, NSASettings, Pixels, Plane, Simulated, object_mask

Canvas = NDArray[np.float32]  # (H, W, 3), grey levels 0..255
Point = tuple[float, float]  # (x, y) in pixels

VISIBLE = 8.0  # grey levels that a pixel must change by to be marked
SECOND_DEFECT = 0.25
MAX_TRIES = 8
SMALLEST_DEFECT = 2e-4  # of the photo's area: about ten pixels of 224 x 224
LARGEST_DEFECT = 0.25
CLOSING = 3  # pixels: gaps in a mark that noise leaves
POINTS = 24  # of a stroke's polyline
SUBPIXEL_BITS = 4


def draw_defects(image: Pixels, settings: NSASettings, rng: Generator) -> Simulated:
    """Draws one defect on the object, sometimes a second one of the same kind; the mask is 1.0 where it is visible."""
    objects = object_mask(image, settings.background)
    places = np.flatnonzero(objects)
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    result, marked = image, np.zeros(image.shape[:2], bool)
    boxes: list[Box] = []
    for _ in range(1 + int(rng.random() < SECOND_DEFECT)):
        taken = _widened(marked)
        for _ in range(MAX_TRIES if places.size else 0):
            row, column = divmod(int(places[rng.integers(places.size)]), objects.shape[1])
            place = (float(column), float(row))
            cover, drawing = KINDS[kind](result.astype(np.float32), place, min(image.shape[:2]), rng)
            if not objects[cover > 0.5].any():
                continue
            after = np.clip(np.rint(drawing), 0, 255).astype(np.uint8)
            mark = _mark(result, after, cover)
            fraction = np.count_nonzero(mark) / marked.size
            if max(SMALLEST_DEFECT, 1 / marked.size) <= fraction <= LARGEST_DEFECT and not (mark & taken).any():
                result = np.where(_widened(mark)[..., None], after, result)
                marked |= mark
                boxes.append(bounding_box(mark))
                break
    return Simulated(result, marked.astype(np.float32), tuple(boxes), kind if boxes else "")


def _widened(flags: Flags) -> Flags:
    return cv2.dilate(flags.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)


def _mark(before: Pixels, after: Pixels, cover: Plane) -> Flags:
    """Where the drawing changed the photo visibly: gaps closed, only the largest piece and what is near it."""
    changed = (cv2.absdiff(after, before).mean(axis=2) > VISIBLE) & (cover > 0.05)
    closed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((CLOSING, CLOSING), np.uint8))
    reach = np.ones((2 * CLOSING + 1, 2 * CLOSING + 1), np.uint8)
    count, labels = cv2.connectedComponents(cv2.dilate(closed, reach))
    sizes = np.bincount(labels[closed.astype(bool)], minlength=count)
    return closed.astype(bool) & (labels == int(sizes.argmax()))


def _stroke(image: Canvas, centre: Point, rng: Generator, length: float, width: float, wander: float) -> Plane:
    """The cover, 0..1, of a line through ``centre``; ``wander`` is how far its direction drifts, in radians in all."""
    turns = np.cumsum(rng.normal(0, wander / np.sqrt(POINTS), POINTS)) + rng.uniform(0, 2 * np.pi)
    path = np.cumsum(length / POINTS * np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)
    path += np.asarray(centre) - path[POINTS // 2]
    cover = np.zeros(image.shape[:2], np.uint8)
    fixed = np.rint(path * 2**SUBPIXEL_BITS).astype(np.int32)[:, None]
    cv2.polylines(cover, [fixed], False, 255, max(1, round(width)), cv2.LINE_AA, SUBPIXEL_BITS)
    soft = cv2.GaussianBlur(cover, (0, 0), 0.6).astype(np.float32) / 255
    return (soft * min(1.0, width)).astype(np.float32)


def _blob(image: Canvas, centre: Point, rng: Generator, radius: float, edge: float) -> Plane:
    """The cover, 0..1, of an irregular patch; ``edge`` is the width of its soft border as a fraction of the radius."""
    y, x = np.indices(image.shape[:2], np.float32)
    tilt, stretch = rng.uniform(0, np.pi), float(np.exp(rng.normal(0, 0.35)))
    across, along = x - centre[0], y - centre[1]
    u = (across * np.cos(tilt) + along * np.sin(tilt)) / stretch
    v = (along * np.cos(tilt) - across * np.sin(tilt)) * stretch
    angle = np.arctan2(v, u)
    waves = (rng.normal(0, 0.25 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 6))
    inside = 1 + sum(waves) - np.hypot(u, v) / radius
    return np.clip(inside / edge + 0.5, 0, 1).astype(np.float32)


def _blend(image: Canvas, colour: Canvas | NDArray[np.floating], cover: Plane) -> Canvas:
    return image + cover[..., None] * (np.asarray(colour, np.float32) - image)


def _cloudy(image: Canvas, rng: Generator, grain: float) -> Plane:
    """Smooth noise of mean 0 and deviation 1; ``grain`` in pixels."""
    coarse = [max(2, int(side / grain)) for side in image.shape[:2]]
    noise = cv2.resize(rng.normal(0, 1, coarse).astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return (noise - noise.mean()) / (noise.std() + 1e-6)


# Each kind of defect: (photo, place, the photo's shorter side, generator) -> (its cover, the photo with the defect).
def _scratch(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    cover = _stroke(image, centre, rng, rng.uniform(0.06, 0.4) * side, rng.uniform(0.7, 2.5), rng.uniform(0, 0.6))
    shift = rng.uniform(18, 90) * (1 if rng.random() < 0.6 else -1)
    return cover, _blend(image, image + shift, cover)


def _crack(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    length = rng.uniform(0.08, 0.6) * side
    cover = _stroke(image, centre, rng, length, rng.uniform(0.8, 3.5), rng.uniform(1.0, 3.0))
    for _ in range(int(rng.integers(0, 3))):
        start = (centre[0] + rng.normal(0, length / 6), centre[1] + rng.normal(0, length / 6))
        cover = np.maximum(cover, _stroke(image, start, rng, length / 3, rng.uniform(0.7, 1.5), 2.0))
    return cover, _blend(image, image * rng.uniform(0.2, 0.75), cover)


def _thread(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    cover = _stroke(image, centre, rng, rng.uniform(0.1, 0.5) * side, rng.uniform(1.0, 3.5), rng.uniform(0.5, 4.0))
    colour = rng.uniform(30, 240) + rng.normal(0, 25, 3)
    return cover, _blend(image, np.clip(colour + 12 * _cloudy(image, rng, 3.0)[..., None], 0, 255), cover)


def _stain(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    radius = side * float(np.clip(0.015 + rng.gamma(1.5, 0.035), 0.015, 0.2))
    cover = _blob(image, centre, rng, radius, rng.uniform(0.2, 1.0)) * np.float32(rng.uniform(0.3, 0.9))
    cover = cover * np.clip(1 + 0.3 * _cloudy(image, rng, radius), 0.2, 1.4)
    colour = image * rng.uniform(0.35, 1.6, 3) if rng.random() < 0.5 else rng.uniform(0, 255, 3)
    return cover, _blend(image, colour, cover)


def _hole(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    radius = side * float(np.clip(0.012 + rng.gamma(1.5, 0.02), 0.012, 0.12))
    cover = _blob(image, centre, rng, radius, rng.uniform(0.1, 0.4))
    rim = np.clip(_blob(image, centre, rng, radius * 1.3, 0.5) - cover, 0, 1)
    rimmed = _blend(image, image * rng.uniform(0.8, 1.3), rim)
    floor = np.percentile(image, 2, axis=(0, 1)) * rng.uniform(0.2, 1.0) + 4 * _cloudy(image, rng, 4.0)[..., None]
    return np.maximum(cover, rim), _blend(rimmed, floor, cover)


def _dent(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    """The surface is pushed sideways around a place, as where something is bent or crushed."""
    radius = side * rng.uniform(0.05, 0.18)
    y, x = np.indices(image.shape[:2], np.float32)
    cover = np.clip(1 - np.hypot(x - centre[0], y - centre[1]) / radius, 0, 1).astype(np.float32)
    push, way = radius * rng.uniform(0.35, 0.9), rng.uniform(0, 2 * np.pi)
    strength = (cover**1.5 * push).astype(np.float32)
    from_x, from_y = x - strength * np.float32(np.cos(way)), y - strength * np.float32(np.sin(way))
    moved = cv2.remap(image, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return cover, moved.astype(np.float32)


def _missing(image: Canvas, centre: Point, side: int, rng: Generator) -> tuple[Plane, Canvas]:
    """A piece is gone: the background, or the surface around it, is shown."""
    cover = _blob(image, centre, rng, side * float(np.clip(0.03 + rng.gamma(1.5, 0.03), 0.03, 0.15)), 0.15)
    if rng.random() < 0.5:
        frame = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        return cover, _blend(image, np.median(frame, axis=0) + 3 * _cloudy(image, rng, 3.0)[..., None], cover)
    behind = cv2.inpaint(image.astype(np.uint8), (cover > 0.3).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return cover, _blend(image, behind.astype(np.float32), cover)


# The names are those of `defects.any_class` in phrases/*.yaml.
KINDS: Mapping[str, Callable[[Canvas, Point, int, Generator], tuple[Plane, Canvas]]] = {
    "scratch": _scratch, "crack": _crack, "thread": _thread, "stain": _stain, "hole": _hole, "bent": _dent,
    "missing": _missing,
}  # fmt: skip
