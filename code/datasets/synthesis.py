"""Simulated anomalies (paper section 3.4): NSA blends a patch of one normal photo into another (Schlüter et al.)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from anomalygpt.config.settings import Settings
from anomalygpt.datasets.regions import Box, bounding_box
from anomalygpt.files import read_yaml

Pixels = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Plane = NDArray[np.float32]  # (H, W)

NSA_CLASSES = read_yaml(Path(__file__).with_name("nsa_classes.yaml"))

TRAINING_THRESHOLD = 0.3  # a pixel above it is trained as anomalous
BASE_HALF, GAMMA_SHAPE, GAMMA_SCALE = 0.03, 2.0, 0.05
RESIZE_MEAN, RESIZE_DEVIATION = 1.0, 0.5
MEDIAN_RADIUS = 5
BLEND_MARGIN = 1  # the blend reads its boundary values from the pixels around the patch
SMALLEST_BLEND = 9  # OpenCV erodes the mask by 3 pixels per side, and fails on patches smaller than that
SECOND_PATCH = 0.5  # probability
LEAST_OVERLAP = 0.25  # fraction of the patch's object that falls on the destination's object
LEAST_TRACE = 1e-3  # fraction of the photo that a patch must mark
MAX_TRIES = 200  # placements tried for one patch
MAX_PASTES = 5  # blends tried for one patch until it marks enough


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first must not be larger than the second")
    return bounds


SideFraction = Annotated[float, Field(gt=0, le=0.5)]
SideBounds = Annotated[tuple[SideFraction, SideFraction], AfterValidator(_ascending)]
ResizeFactor = Annotated[float, Field(gt=0)]
GreyLevel = Annotated[float, Field(ge=0, le=255)]


class NSALabel(Settings):
    """The label logistic((difference - midpoint) / softness) in grey levels: k = 1 / softness, x0 = midpoint in NSA."""

    softness: Annotated[float, Field(gt=0)]
    midpoint: GreyLevel


class NSASettings(Settings):
    """How defects are simulated for one class; nsa_classes.yaml, which has a row for each class, explains the keys."""

    half_height: SideBounds = (0.03, 0.4)
    half_width: SideBounds = (0.03, 0.4)
    resize: Annotated[tuple[ResizeFactor, ResizeFactor], AfterValidator(_ascending)] = (0.5, 2.0)
    label: NSALabel = NSALabel(softness=12, midpoint=24)
    background: tuple[GreyLevel, GreyLevel] | None = None


class Simulated(NamedTuple):
    """A photo with simulated defects; without boxes it is unchanged."""

    image: Pixels  # (H, W, 3)
    mask: Plane  # (H, W) in 0..1, the logistic label; its training target is ``mask > 0.3``
    boxes: tuple[Box, ...]  # around the target pixels that each patch left, 0 to 2; traces that meet share one box
    kind: str = ""  # what the defect is (``scratch``); empty for a pasted patch, or for none


def nsa_settings(class_name: str, changes: Mapping[str, Any] | None = None) -> NSASettings:
    """A class's row of nsa_classes.yaml by name or alias (``_`` and space alike), or the default, with ``changes``."""
    name = class_name.strip().lower().replace(" ", "_")
    row = NSA_CLASSES["classes"].get(NSA_CLASSES["aliases"].get(name, name), {})
    return NSASettings.model_validate(NSA_CLASSES["default"] | row | dict(changes or {}))


def simulate(image: Pixels, source: Pixels, settings: NSASettings, rng: Generator) -> Simulated:
    """Blends one patch of ``source``, and with probability 1/2 a second one, into ``image``; where none leaves a trace,
    the photo stays unchanged and the mask empty. Both are normal photos, uint8 (H, W, 3), of any sizes.
    """
    result, pasted = image, list[Box]()
    least = max(1.0, LEAST_TRACE * image.shape[0] * image.shape[1])
    source_objects = object_mask(source, settings.background)
    for _ in range(1 + int(rng.random() < SECOND_PATCH)):
        objects = object_mask(result, settings.background)
        for _ in range(MAX_PASTES):
            if (placement := _place(objects, source_objects, settings, rng)) is None:
                break
            cut, box = placement
            # Only where either photo shows object.
            shape = _resized(source_objects[cut.pixels()], box) | objects[box.pixels()]
            after = _poisson(result, source[cut.pixels()], shape, box)
            if np.count_nonzero(change_label(result, after, settings) > TRAINING_THRESHOLD) >= least:
                result, pasted = after, [*pasted, box]
                break
    mask = change_label(image, result, settings)
    boxes = _traces(mask > TRAINING_THRESHOLD, pasted)
    return Simulated(result, mask, boxes) if boxes else Simulated(image, np.zeros_like(mask), ())


def object_mask(image: Pixels, background: tuple[float, float] | None) -> Flags:
    """Where the photo shows the object: |grey - brightness| > threshold; everywhere for None. (H, W) bool."""
    brightness, threshold = background or (0, -1)
    return np.abs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) - brightness) > threshold


def _place(objects: Flags, source_objects: Flags, settings: NSASettings, rng: Generator) -> tuple[Box, Box] | None:
    """Where to cut from the source and where to paste, so that enough object meets object. None when no try fits."""
    if min(objects.shape) - 2 * BLEND_MARGIN < SMALLEST_BLEND:
        return None
    for _ in range(MAX_TRIES):
        bounds = (settings.half_height, settings.half_width)
        halves = [float(np.clip(BASE_HALF + rng.gamma(GAMMA_SHAPE, GAMMA_SCALE), *limits)) for limits in bounds]
        sides = [2 * half * side for side, half in zip(source_objects.shape, halves, strict=True)]
        cut = _draw_box(sides, source_objects.shape, 0, rng)
        factor = float(np.clip(rng.normal(RESIZE_MEAN, RESIZE_DEVIATION), *settings.resize))
        box = _draw_box([factor * side for side in cut.size[::-1]], objects.shape, BLEND_MARGIN, rng)
        patch = _resized(source_objects[cut.pixels()], box)
        meeting = np.count_nonzero(patch & objects[box.pixels()])
        if meeting and meeting >= LEAST_OVERLAP * np.count_nonzero(patch):
            return cut, box
    return None


def _draw_box(sides: Sequence[float], shape: Sequence[int], margin: int, rng: Generator) -> Box:
    """A box of about these sides (height, width), anywhere inside the margin of a photo of this shape."""
    room = [side - 2 * margin for side in shape]
    height, width = (min(most, max(SMALLEST_BLEND, round(side))) for side, most in zip(sides, room, strict=True))
    top = margin + int(rng.integers(0, room[0] - height + 1))
    left = margin + int(rng.integers(0, room[1] - width + 1))
    return Box(left, top, left + width, top + height)


def _resized(flags: Flags, box: Box) -> Flags:
    return cv2.resize(flags.astype(np.uint8), box.size, interpolation=cv2.INTER_NEAREST).astype(bool)


def _poisson(image: Pixels, piece: Pixels, shape: Flags, box: Box) -> Pixels:
    """Blends ``piece``, resized to ``box``, where ``shape`` (H, W of the box) is True, unless that is too small."""
    if not shape.any() or min(bounding_box(shape).size) < SMALLEST_BLEND:
        return image
    # OpenCV centres the shape's bounding box, not the patch, on the point that it is given.
    inner = bounding_box(shape)
    width, height = inner.size
    way = cv2.INTER_AREA if box.size[0] < piece.shape[1] else cv2.INTER_LINEAR
    trimmed = np.ascontiguousarray(cv2.resize(piece, box.size, interpolation=way)[inner.pixels()])
    flags = 255 * shape[inner.pixels()].astype(np.uint8)
    centre = (box.left + inner.left + width // 2, box.top + inner.top + height // 2)
    blended = cv2.seamlessClone(trimmed, np.ascontiguousarray(image), flags, centre, cv2.NORMAL_CLONE)
    return np.asarray(blended, np.uint8)


def change_label(before: Pixels, after: Pixels, settings: NSASettings) -> Plane:
    """NSA's logistic label, float32 (H, W) in 0..1, of the channels' mean difference, median-filtered (disk 5)."""
    from skimage.filters import rank  # here, because it takes a quarter of a second
    from skimage.morphology import disk

    label, difference = np.zeros(before.shape[:2], np.float32), cv2.absdiff(after, before)
    changed = np.asarray(difference.any(axis=2))
    if not changed.any():
        return label
    region = bounding_box(changed).pixels(MEDIAN_RADIUS)
    mean = np.rint(difference[region].mean(axis=2)).astype(np.uint8)
    smooth = rank.median(mean, disk(MEDIAN_RADIUS)).astype(np.float32)
    logistic = 1 / (1 + np.exp((settings.label.midpoint - smooth) / settings.label.softness))
    label[region] = np.where(smooth > 0, logistic, 0)
    return label


def _traces(target: Flags, pasted: list[Box]) -> tuple[Box, ...]:
    """The box of the target pixels of each patch; patches that share a target pixel are one defect."""
    traces = [np.zeros_like(target) for _ in pasted]
    for trace, near in zip(traces, (box.pixels(MEDIAN_RADIUS) for box in pasted), strict=True):
        trace[near] = target[near]
    if len(traces) == 2 and (traces[0] & traces[1]).any():
        return (bounding_box(target),)
    return tuple(bounding_box(trace) for trace in traces if trace.any())
