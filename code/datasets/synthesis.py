"""Simulated anomalies: NSA, a patch of one normal photo blended into another (Schlüter et al., ECCV 2022;
paper section 3.4).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from skimage.filters import rank
from skimage.morphology import disk

from anomalygpt.datasets.transforms import TRAINING_THRESHOLD

Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]

CLASS_TABLE = Path(__file__).with_name("nsa_classes.yaml")

BASE_HALF, GAMMA_SHAPE, GAMMA_SCALE = 0.03, 2.0, 0.05
RESIZE_MEAN, RESIZE_DEVIATION = 1.0, 0.5
MEDIAN_RADIUS = 5
BLEND_MARGIN = 1  # the blend reads its boundary values from the pixels around the patch
SMALLEST_BLEND = 9  # OpenCV erodes the mask by 3 pixels a side, and fails on patches smaller than that


class Box(NamedTuple):
    """A half-open box in pixels: columns left..right, rows top..bottom."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class NSASettings:
    """How defects are simulated for one class.

    half_height, half_width: bounds of the patch's half sides, as shares of the photo's side. resize: bounds
    of the resize factor. label_softness, label_midpoint: grey levels; the label is logistic((difference -
    midpoint) / softness), that is k = 1 / softness and x0 = midpoint in NSA. background: (brightness,
    threshold) in grey levels, None where all of the photo is object. min_object: least share of object in a
    patch (more than none in any case). min_overlap: least share of the patch's object that falls on the
    destination's object. max_tries: placements tried for one patch. second_patch: probability of a second
    patch. min_trace: least share of the photo that a patch must mark at once. max_pastes: blends tried for
    one patch until it marks that much.
    """

    half_height: tuple[float, float] = (0.03, 0.4)
    half_width: tuple[float, float] = (0.03, 0.4)
    resize: tuple[float, float] = (0.5, 2.0)
    label_softness: float = 12.0
    label_midpoint: float = 24.0
    background: tuple[float, float] | None = None
    min_object: float = 0.0
    min_overlap: float = 0.25
    max_tries: int = 200
    second_patch: float = 0.5
    min_trace: float = 1e-3
    max_pastes: int = 5


@dataclass(frozen=True)
class Simulated:
    """A photo with simulated defects.

    image: uint8 (H, W, 3). mask: float32 (H, W) in 0..1, the logistic label; its training target is `mask >
    0.3`. boxes: around the target pixels that each patch left, 0 to 2 of them; patches whose traces meet
    share one box. kind: what the defect is (`scratch`), empty where nobody could say: a pasted patch, or none.
    """

    image: Pixels
    mask: NDArray[np.float32]
    boxes: tuple[Box, ...]
    kind: str = ""

    @property
    def is_anomalous(self) -> bool:
        """Whether the target marks anything: exactly when there are boxes."""
        return bool(self.boxes)


def nsa_settings(class_name: str, changes: Mapping[str, Any] | None = None) -> NSASettings:
    """The class's row of NSA's tables, found by its name or alias (`_` and space alike); the VisA row for any
    other.

    changes: what differs from that row, in the table's own form.
    """
    table = _class_table()
    name = class_name.strip().lower().replace(" ", "_")
    row = table["classes"].get(table["aliases"].get(name, name), {})
    return _settings_from({**table["default"], **row, **(changes or {})})


@cache
def _class_table() -> dict[str, Any]:
    return yaml.safe_load(CLASS_TABLE.read_text(encoding="utf-8"))


def _settings_from(row: dict[str, Any]) -> NSASettings:
    return NSASettings(
        half_height=tuple(row["half_height"]),
        half_width=tuple(row["half_width"]),
        resize=tuple(row["resize"]),
        label_softness=row["label"]["softness"],
        label_midpoint=row["label"]["midpoint"],
        background=None if row["background"] is None else tuple(row["background"]),
    )


def simulate(image: Pixels, source: Pixels, settings: NSASettings, rng: np.random.Generator) -> Simulated:
    """Blends one patch of `source`, and on a coin flip a second one, into `image`.

    image, source: normal photos, uint8 (H, W, 3), of any sizes. A patch that changes too little to be marked
    is taken back and drawn again, `max_pastes` times. When nothing was left, the photo comes back unchanged
    with an empty mask.
    """
    wanted = 1 + int(rng.random() < settings.second_patch)
    result = image
    pasted: list[Box] = []
    for _ in range(wanted):
        result, box = _paste_visibly(result, source, settings, rng)
        pasted += [box] if box is not None else []
    mask = change_label(image, result, settings)
    boxes = _traces(mask > TRAINING_THRESHOLD, pasted)
    if not boxes:
        return Simulated(image, np.zeros(image.shape[:2], np.float32), ())
    return Simulated(result, mask, boxes)


def _paste_visibly(
    image: Pixels, source: Pixels, settings: NSASettings, rng: np.random.Generator
) -> tuple[Pixels, Box | None]:
    """One patch pasted so that it leaves a trace: the new photo and the patch's box, or the old photo and
    None.
    """
    least = max(1.0, settings.min_trace * image.shape[0] * image.shape[1])
    objects = object_mask(image, settings.background)
    source_objects = object_mask(source, settings.background)
    for _ in range(settings.max_pastes):
        placement = _place(objects, source_objects, settings, rng)
        if placement is None:
            return image, None
        cut, box = placement
        after = _blend(image, source, objects, source_objects, cut, box, settings.background is not None)
        if np.count_nonzero(change_label(image, after, settings) > TRAINING_THRESHOLD) >= least:
            return after, box
    return image, None


def object_mask(image: Pixels, background: tuple[float, float] | None) -> Flags:
    """Where the photo shows the object: |grey - brightness| > threshold; everywhere for None. (H, W) bool."""
    if background is None:
        return np.ones(image.shape[:2], bool)
    brightness, threshold = background
    return np.abs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) - brightness) > threshold


def _place(
    objects: Flags, source_objects: Flags, settings: NSASettings, rng: np.random.Generator
) -> tuple[Box, Box] | None:
    """Where to cut from the source and where to paste: both hold object, and enough of it meets. None when no
    try fits.
    """
    for _ in range(settings.max_tries):
        cut = _draw_cut(source_objects.shape, settings, rng)
        found = source_objects[cut.top : cut.bottom, cut.left : cut.right]
        box = _draw_box(objects.shape, cut, settings, rng)
        if box is None or not found.any() or found.mean() < settings.min_object:
            continue
        if settings.background is None:
            return cut, box
        patch = _resized(found, box)
        meeting = np.count_nonzero(patch & objects[box.top : box.bottom, box.left : box.right])
        if meeting and meeting >= settings.min_overlap * np.count_nonzero(patch):
            return cut, box
    return None


def _draw_cut(shape: tuple[int, ...], settings: NSASettings, rng: np.random.Generator) -> Box:
    """The patch in the source: half sides 0.03 + Gamma(2, 0.05) of the side, within the class's bounds."""
    bounds = (settings.half_height, settings.half_width)
    halves = [np.clip(BASE_HALF + rng.gamma(GAMMA_SHAPE, GAMMA_SCALE), low, high) for low, high in bounds]
    height, width = (
        min(side, max(SMALLEST_BLEND, round(2 * half * side))) for side, half in zip(shape, halves, strict=True)
    )
    top = int(rng.integers(0, shape[0] - height + 1))
    left = int(rng.integers(0, shape[1] - width + 1))
    return Box(left, top, left + width, top + height)


def _draw_box(shape: tuple[int, ...], cut: Box, settings: NSASettings, rng: np.random.Generator) -> Box | None:
    """The patch in the destination: the cut resized by N(1, 0.5), anywhere inside the margin. None in a tiny
    photo.
    """
    factor = float(np.clip(rng.normal(RESIZE_MEAN, RESIZE_DEVIATION), *settings.resize))
    room = [side - 2 * BLEND_MARGIN for side in shape]
    sides = (cut.bottom - cut.top, cut.right - cut.left)
    height, width = (
        min(most, max(SMALLEST_BLEND, round(side * factor))) for side, most in zip(sides, room, strict=True)
    )
    if min(height, width) < SMALLEST_BLEND:
        return None
    top = BLEND_MARGIN + int(rng.integers(0, room[0] - height + 1))
    left = BLEND_MARGIN + int(rng.integers(0, room[1] - width + 1))
    return Box(left, top, left + width, top + height)


def _resized(flags: Flags, box: Box) -> Flags:
    size = (box.right - box.left, box.bottom - box.top)
    return cv2.resize(flags.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _blend(
    image: Pixels,
    source: Pixels,
    objects: Flags,
    source_objects: Flags,
    cut: Box,
    box: Box,
    has_background: bool,
) -> Pixels:
    """Poisson blending of the cut into the box; where the background is known, only where either photo shows
    object.
    """
    size = (box.right - box.left, box.bottom - box.top)
    piece = source[cut.top : cut.bottom, cut.left : cut.right]
    shrinks = size[0] < piece.shape[1]
    resized = cv2.resize(piece, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    patch = resized.astype(np.uint8, copy=False)
    shape = np.ones(patch.shape[:2], bool)
    if has_background:
        shape = _resized(source_objects[cut.top : cut.bottom, cut.left : cut.right], box)
        shape |= objects[box.top : box.bottom, box.left : box.right]
    return _poisson(image, patch, shape, box.left, box.top)


def _poisson(image: Pixels, patch: Pixels, shape: Flags, left: int, top: int) -> Pixels:
    """Clones `patch` with its corner at (left, top). A shape too small for OpenCV leaves the photo as it is.

    OpenCV centres the shape's bounding box, not the patch, on the point it is given: the patch is trimmed to
    that box.
    """
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    if not rows.size or min(np.ptp(rows), np.ptp(columns)) + 1 < SMALLEST_BLEND:
        return image
    first, last = (rows[0], columns[0]), (rows[-1] + 1, columns[-1] + 1)
    inner = (slice(first[0], last[0]), slice(first[1], last[1]))
    height, width = last[0] - first[0], last[1] - first[1]
    centre = (int(left + first[1] + width // 2), int(top + first[0] + height // 2))
    trimmed = np.ascontiguousarray(patch[inner])
    flags = np.ascontiguousarray(shape[inner]).astype(np.uint8) * 255
    blended = cv2.seamlessClone(trimmed, np.ascontiguousarray(image), flags, centre, cv2.NORMAL_CLONE)
    return blended.astype(np.uint8, copy=False)


def change_label(before: Pixels, after: Pixels, settings: NSASettings) -> NDArray[np.float32]:
    """NSA's logistic label: float32 (H, W) in 0..1, zero where nothing changed.

    The difference |after - before| is averaged over the channels (grey levels 0..255) and median-filtered
    (disk 5).
    """
    label = np.zeros(before.shape[:2], np.float32)
    difference = cv2.absdiff(after, before)
    rows = np.flatnonzero(difference.any(axis=(1, 2)))
    if not rows.size:
        return label
    columns = np.flatnonzero(difference.any(axis=(0, 2)))
    region = (
        slice(_before(rows[0]), rows[-1] + MEDIAN_RADIUS + 1),
        slice(_before(columns[0]), columns[-1] + MEDIAN_RADIUS + 1),
    )
    mean = np.rint(difference[region].mean(axis=2)).astype(np.uint8)
    smooth = rank.median(mean, disk(MEDIAN_RADIUS)).astype(np.float32)
    logistic = 1 / (1 + np.exp((settings.label_midpoint - smooth) / settings.label_softness))
    label[region] = np.where(smooth > 0, logistic, 0)
    return label


def _before(index: int) -> int:
    return max(0, int(index) - MEDIAN_RADIUS)


def _traces(target: Flags, pasted: list[Box]) -> tuple[Box, ...]:
    """The box of the target pixels of each patch; patches that share a target pixel are one defect."""
    if not target.any():
        return ()
    traces = []
    for box in pasted:
        trace = np.zeros_like(target)
        near = (
            slice(_before(box.top), box.bottom + MEDIAN_RADIUS),
            slice(_before(box.left), box.right + MEDIAN_RADIUS),
        )
        trace[near] = target[near]
        traces.append(trace)
    if len(traces) == 2 and (traces[0] & traces[1]).any():
        return (bounding_box(target),)
    return tuple(bounding_box(trace) for trace in traces if trace.any())


def bounding_box(flags: Flags) -> Box:
    rows, columns = np.flatnonzero(flags.any(axis=1)), np.flatnonzero(flags.any(axis=0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
