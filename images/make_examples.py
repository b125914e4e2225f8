"""Pictures of made-up parts, drawn from nothing: a washer, a circuit board, a bottle and others.

They are the demo's examples: no data set's licence allows its photos to be shipped. Each part comes whole or with a
defect whose place is known. ``python images/make_examples.py`` draws them anew.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 512  # of a picture, in pixels
FINE = 2  # drawn this many times larger, then reduced: smooth edges
CANVAS = SIDE * FINE
GOOD_EXAMPLES = 2
WITHOUT_GOOD = ("gear",)  # so that the demo shows what it can't tell
EXAMPLE_SEED, EVENING_SEED = 2, 5
EVENING = (0.88, 0.86, 0.82)  # exposure of red, green and blue in the second kind of light
JPEG_QUALITY = 85

Colours = NDArray[np.floating[Any]]  # (H, W, 3), 0..1
Plane = NDArray[np.floating[Any]]  # (H, W)


@dataclass(frozen=True)
class Rendered:
    """A picture of a part.

    Attributes:
        photo: RGB, SIDE x SIDE.
        mask: (SIDE, SIDE) bool, where the defect is; empty for a whole part.
    """

    photo: Image.Image
    mask: NDArray[np.bool_]


def render(part: str, rng: np.random.Generator, defective: bool = False, evening: bool = False) -> Rendered:
    """Draws a part, each time a little differently placed and lit.

    Args:
        part: a key of ``PARTS``.
        evening: in dimmer and warmer light that comes from the other side.
    """
    colours, mask = PARTS[part](rng, defective)
    reduced = cv2.resize(_lit(colours, rng, evening), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    noisy = reduced + rng.normal(0, 0.008, reduced.shape)  # the sensor
    photo = Image.fromarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8))
    small = cv2.resize(mask.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Rendered(photo, small > 0.3)


def write_examples(folder: Path) -> None:
    """Writes good_1.jpg, good_2.jpg … and defect.jpg of each part into a folder of its name; of some the last alone.

    Of the others also defect_evening.jpg and whole_evening.jpg, in the second kind of light.
    """
    for part in PARTS:
        rng = np.random.default_rng(EXAMPLE_SEED)
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(1, 1 if part in WITHOUT_GOOD else GOOD_EXAMPLES + 1):
            render(part, rng).photo.save(folder / part / f"good_{number}.jpg", quality=JPEG_QUALITY)
        render(part, rng, defective=True).photo.save(folder / part / "defect.jpg", quality=JPEG_QUALITY)
        rng = np.random.default_rng(EVENING_SEED)
        for name, defective in () if part in WITHOUT_GOOD else (("defect", True), ("whole", False)):
            photo = render(part, rng, defective, evening=True).photo
            photo.save(folder / part / f"{name}_evening.jpg", quality=JPEG_QUALITY)


# -- light and noise --------------------------------------------------------------------------------------------------


def _coordinates() -> tuple[Plane, Plane]:
    """x and y of each canvas pixel, from -1 to 1."""
    line = np.linspace(-1, 1, CANVAS, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x, y


def _noise(rng: np.random.Generator, width: float, height: float | None = None) -> Plane:
    """Smooth noise of unit deviation; width, height: its grain, in canvas pixels."""
    height = width if height is None else height
    shape = (max(2, round(CANVAS / height)), max(2, round(CANVAS / width)))
    coarse = rng.normal(0, 1, shape).astype(np.float32)
    smooth = cv2.resize(coarse, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    return (smooth / smooth.std()).astype(np.float32)


def _lit(colours: Colours, rng: np.random.Generator, evening: bool = False) -> Colours:
    """Exposure, a lamp a little off the centre, and the lens's darker corners."""
    x, y = _coordinates()
    lamp_x, lamp_y = rng.uniform(-0.15, 0.15, 2) + (0.2 if evening else -0.2)
    lamp = 1.06 - 0.10 * ((x - lamp_x) ** 2 + (y - lamp_y) ** 2)
    exposure = np.array(EVENING if evening else (1, 1, 1)) * rng.uniform(0.98, 1.02)
    return np.asarray(colours * lamp[..., None] * exposure, dtype=np.float32)


def _shade(height: Plane, strength: float) -> Plane:
    """Light from the top left on a height map; 1 on level ground."""
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) / 8
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) / 8
    return np.asarray(1 + strength * (slope_x + slope_y), dtype=np.float32)


def _blur(plane: Plane, radius: float) -> Plane:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), radius), dtype=np.float32)


def _paint(under: Colours, colour: Sequence[float] | Colours, cover: Plane) -> Colours:
    """A colour over a picture where `cover` (0..1) says so."""
    paint = np.asarray(colour, dtype=np.float32)
    return np.asarray(under + (paint - under) * cover[..., None], dtype=np.float32)


def _drawn(draw_on: Callable[[ImageDraw.ImageDraw], None], soften: float = 1.0) -> Plane:
    """What a function draws in white on black, as a cover (0..1)."""
    sheet = Image.new("L", (CANVAS, CANVAS))
    draw_on(ImageDraw.Draw(sheet))
    return _blur(np.asarray(sheet, dtype=np.float32) / 255, soften)


def _nowhere() -> NDArray[np.bool_]:
    return np.zeros((CANVAS, CANVAS), dtype=bool)


# -- washer -----------------------------------------------------------------------------------------------------------

OUTER, INNER = 0.74, 0.33
BEVEL = 0.035


def _washer(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A turned steel washer on dark felt."""
    x, y = _coordinates()
    shift_x, shift_y = rng.uniform(-0.015, 0.015, 2)
    x, y = x - shift_x, y - shift_y
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    inside = np.minimum(OUTER - radius, radius - INNER)
    mask = _nowhere()
    if defective:
        nick = np.hypot(x - 0.60, y + 0.50) - 0.085 - 0.01 * _noise(rng, 24)
        mask |= (nick < 0.02) & (inside > -0.01)
        inside = np.minimum(inside, nick)
    steel = _turned_steel(rng, radius, angle, inside)
    if defective:
        scratch = _drawn(_scratches(rng), soften=1.6)
        steel = _paint(steel, (0.16, 0.15, 0.15), 0.85 * scratch)
        steel = _paint(steel, (0.98, 0.98, 0.97), 0.6 * np.roll(scratch, (3, 3), (0, 1)))
        mask |= (_blur(scratch, 6) > 0.08) & (inside > 0)
    cover = np.clip(inside * CANVAS / 3 + 0.5, 0, 1)
    return _paint(_felt(rng, cover), steel, cover), mask


def _felt(rng: np.random.Generator, cover: Plane) -> Colours:
    """Dark felt with the shadow of what lies on it."""
    grain = 1 + 0.10 * _noise(rng, 3) + 0.05 * _noise(rng, 9) + 0.03 * _noise(rng, 200)
    shadow = np.roll(_blur(cover, 16), (16, 12), (0, 1))
    level = grain * (1 - 0.75 * shadow)
    return np.asarray(level[..., None] * np.array([0.125, 0.165, 0.215]), dtype=np.float32)


def _turned_steel(rng: np.random.Generator, radius: Plane, angle: Plane, inside: Plane) -> Colours:
    """Steel that shines in a bow tie, as turned surfaces do, with fine rings and a bevelled edge."""
    ring_at = np.clip(radius * CANVAS / 2, 0, CANVAS - 1).astype(int)
    fine, coarse = rng.normal(0, 1, CANVAS), cv2.GaussianBlur(rng.normal(0, 1, (CANVAS, 1)), (1, 0), 3)
    coarse = coarse[:, 0] / coarse.std()
    rings = 0.028 * fine[ring_at] + 0.030 * coarse[ring_at]
    shine = np.abs(np.cos(angle - 0.8)) ** 6 + 0.55 * np.abs(np.cos(angle + 0.75)) ** 10
    level = 0.50 + 0.34 * shine + rings * (0.6 + 0.8 * shine) + 0.008 * _noise(rng, 40)
    edge = np.clip(1 - inside / BEVEL, 0, 1)
    outwards = np.where(radius > (OUTER + INNER) / 2, 1.0, -1.0)
    facing = -np.cos(angle - np.pi / 4) * outwards  # the lamp stands at the top left
    level = level * (1 - edge) + edge * (0.52 + 0.38 * facing)
    return np.asarray(level[..., None] * np.array([0.97, 0.985, 1.0]), dtype=np.float32)


def _scratches(rng: np.random.Generator) -> Callable[[ImageDraw.ImageDraw], None]:
    def draw(sheet: ImageDraw.ImageDraw) -> None:
        for start, width in ((0.0, 9), (0.035, 5), (-0.05, 6)):
            along = np.linspace(0, 1, 12)
            x = 0.19 + 0.24 * along + rng.normal(0, 0.0015, 12)
            y = 0.63 + start + 0.15 * along + 0.03 * along**2 + rng.normal(0, 0.0015, 12)
            sheet.line([(CANVAS * a, CANVAS * b) for a, b in zip(x, y, strict=True)], fill=255, width=width)

    return draw


# -- circuit board ----------------------------------------------------------------------------------------------------

BOARD = (0.03, 0.27, 0.17)
TRACK = (0.07, 0.40, 0.25)
GOLD = (0.86, 0.70, 0.36)
TIN = (0.74, 0.76, 0.78)
INK = (0.90, 0.92, 0.88)
CHIP = (0.075, 0.075, 0.085)
SCORCH = (0.09, 0.055, 0.03)
Box = tuple[float, float, float, float]  # left, top, right, bottom in canvas pixels

# Places in pixels of a 1024 canvas: (centre x, centre y, upright).
RESISTORS = ((200, 610, False), (200, 680, False), (200, 750, False), (640, 200, True), (710, 200, True),
             (780, 200, True), (850, 560, False), (850, 630, False), (560, 850, True), (630, 850, True))  # fmt: skip
MISSING, CROOKED = 1, 6  # resistors of a defective board
ROUTES = (
    ((330, 420), (230, 420), (180, 370), (180, 250)),
    ((330, 460), (250, 460), (120, 330), (120, 250)),
    ((330, 500), (270, 500), (240, 530), (240, 610)),
    ((330, 540), (300, 540), (280, 560), (280, 680), (245, 680)),
    ((610, 420), (680, 350), (680, 260), (640, 240)),
    ((610, 460), (700, 370), (710, 240)),
    ((610, 500), (690, 500), (780, 410), (780, 240)),
    ((610, 540), (700, 540), (720, 560), (805, 560)),
    ((610, 580), (690, 580), (740, 630), (805, 630)),
    ((610, 620), (670, 620), (700, 650), (700, 720)),
    ((400, 690), (400, 780), (430, 810), (560, 810)),
    ((470, 690), (470, 740), (500, 770), (630, 770), (630, 810)),
    ((155, 750), (120, 785), (120, 880)),
    ((400, 350), (400, 250), (440, 210), (600, 210)),
)
ENDS_IN_HOLE = (0, 1, 9, 12)


def _pcb(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A green board with a chip, resistors, a capacitor and a row of pins."""
    board, height, mask = _bare_board(rng), np.zeros((CANVAS, CANVAS), dtype=np.float32), _nowhere()
    for number, (x, y, upright) in enumerate(RESISTORS):
        gone, crooked = defective and number == MISSING, defective and number == CROOKED
        board, height = _resistor(board, height, (x, y), 90.0 * upright + 48 * crooked, gone)
        if gone or crooked:
            mask[y - 34 : y + 34, x - 62 : x + 62] = True
    board, height = _chip(board, height, (340, 360, 600, 680))
    board, height = _capacitor(board, height, (800, 800), 92)
    board = _pin_row(board)
    if defective:
        board, bridge = _solder_bridge(board, (612, 480))
        mask |= bridge
    shadow = np.roll(_blur(np.clip(height, 0, 1), 9), (9, 7), (0, 1)) * (height < 0.3)
    board = board * (1 - 0.55 * shadow)[..., None] * np.clip(_shade(_blur(height, 1.5), 1.2), 0.55, 1.5)[..., None]
    return _placed(board, mask, rng)


def _bare_board(rng: np.random.Generator) -> Colours:
    """Solder mask, tracks, holes and print."""
    level = 1 + 0.015 * _noise(rng, 3) + 0.02 * _noise(rng, 160)
    board = np.asarray(level[..., None] * np.array(BOARD), dtype=np.float32)

    def tracks(sheet: ImageDraw.ImageDraw) -> None:
        for route in ROUTES:
            sheet.line(route, fill=255, width=11, joint="curve")

    board = _paint(board, TRACK, _drawn(tracks))
    holes = [ROUTES[number][-1] for number in ENDS_IN_HOLE]
    board = _paint(board, GOLD, _drawn(_discs(holes, 17)))
    board = _paint(board, (0.02, 0.03, 0.03), _drawn(_discs(holes, 8)))
    corners = [(75, 75), (949, 75), (75, 949), (949, 949)]
    board = _paint(board, GOLD, _drawn(_discs(corners, 44)))
    board = _paint(board, (0.02, 0.025, 0.03), _drawn(_discs(corners, 26)))
    return _paint(board, INK, 0.9 * _drawn(_print_on_board, 0.8))


def _discs(centres: Sequence[tuple[float, float]], radius: float) -> Callable[[ImageDraw.ImageDraw], None]:
    def draw(sheet: ImageDraw.ImageDraw) -> None:
        for x, y in centres:
            sheet.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)

    return draw


def _print_on_board(sheet: ImageDraw.ImageDraw) -> None:
    small, large = ImageFont.load_default(26), ImageFont.load_default(40)
    sheet.text((165, 905), "SENSOR NODE", font=large, fill=255)
    sheet.text((165, 950), "rev 2.1", font=small, fill=255)
    for number, (x, y, upright) in enumerate(RESISTORS, start=1):
        place = (x - 16, y - 94) if upright else (x + 62, y - 16)
        sheet.text(place, f"R{number}", font=small, fill=255)
    sheet.text((350, 316), "U1", font=small, fill=255)
    sheet.text((690, 700), "+", font=large, fill=255)
    sheet.rectangle((326, 350, 614, 690), outline=255, width=3)
    sheet.ellipse((700, 700, 900, 900), outline=255, width=3)


def _resistor(
    board: Colours, height: Plane, centre: tuple[int, int], degrees: float, gone: bool
) -> tuple[Colours, Plane]:
    """One resistor on its two pads; `gone` leaves two scorched pads."""
    straight = round(degrees / 90) * 90.0
    for side in (-1, 1):
        pad = _drawn(_tilted(centre, (side * 34, 0), (34, 44), straight))
        board = _paint(board, TIN if gone else GOLD, pad)
        height = np.maximum(height, 0.15 * _blur(pad, 4 if gone else 1))
    if gone:
        scorch = _drawn(_tilted(centre, (4, 3), (150, 96), straight + 9), soften=15)
        return _paint(board, SCORCH, 0.95 * scorch), height
    body = _drawn(_tilted(centre, (0, 0), (84, 40), degrees))
    ends = sum(_drawn(_tilted(centre, (side * 36, 0), (18, 40), degrees)) for side in (-1, 1))
    board = _paint(_paint(board, CHIP, body), TIN, np.clip(ends, 0, 1))
    return board, np.maximum(height, 0.6 * body)


def _tilted(
    centre: tuple[int, int], offset: tuple[int, int], size: tuple[int, int], degrees: float
) -> Callable[[ImageDraw.ImageDraw], None]:
    """A box of a size, at an offset from a centre, turned about that centre."""
    turn = np.deg2rad(degrees)
    corners = [
        (offset[0] + sx * size[0] / 2, offset[1] + sy * size[1] / 2) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    turned = [
        (centre[0] + x * np.cos(turn) - y * np.sin(turn), centre[1] + x * np.sin(turn) + y * np.cos(turn))
        for x, y in corners
    ]
    return lambda sheet: sheet.polygon(turned, fill=255)


def _chip(board: Colours, height: Plane, box: Box) -> tuple[Colours, Plane]:
    """A black chip with legs on both sides, its mark and a dot at pin 1."""
    left, top, right, bottom = box

    def legs(sheet: ImageDraw.ImageDraw) -> None:
        for y in range(int(top) + 30, int(bottom) - 20, 40):
            sheet.rectangle((left - 26, y - 9, left, y + 9), fill=255)
            sheet.rectangle((right, y - 9, right + 26, y + 9), fill=255)

    def mark(sheet: ImageDraw.ImageDraw) -> None:
        sheet.text((left + 62, top + 120), "AG-2411", font=ImageFont.load_default(38), fill=255)
        sheet.text((left + 62, top + 172), "16 MHz", font=ImageFont.load_default(30), fill=255)

    legs_cover, body = _drawn(legs), _drawn(lambda sheet: sheet.rounded_rectangle(box, 8, fill=255))
    board = _paint(_paint(board, TIN, legs_cover), CHIP, body)
    board = _paint(board, (0.55, 0.56, 0.58), 0.8 * _drawn(mark, 0.8))
    board = _paint(board, (0.03, 0.03, 0.035), _drawn(_discs([(left + 36, top + 36)], 13)))
    return board, np.maximum(height, np.maximum(0.3 * legs_cover, body))


def _capacitor(board: Colours, height: Plane, centre: tuple[int, int], radius: int) -> tuple[Colours, Plane]:
    """An aluminium can seen from above, with its black half-moon."""
    x, y = centre
    can = _drawn(_discs([centre], radius))
    columns = np.arange(CANVAS, dtype=np.float32)
    sheen = 0.70 + 0.16 * np.cos((columns - x + 30) / radius * 2.2)
    metal = np.broadcast_to(sheen[None, :, None] * np.array([0.98, 0.99, 1.0]), board.shape).astype(np.float32)
    board = _paint(board, metal, can)
    moon = _drawn(lambda sheet: sheet.chord((x - radius, y - radius, x + radius, y + radius), 130, 230, fill=255))
    board = _paint(board, (0.09, 0.09, 0.11), moon)
    rim = _drawn(lambda sheet: sheet.ellipse((x - 78, y - 78, x + 78, y + 78), outline=255, width=4), 1.5)
    return _paint(board, (0.45, 0.46, 0.48), 0.6 * rim), np.maximum(height, can)


def _pin_row(board: Colours) -> Colours:
    """Eight gilded pins along the upper edge."""
    places = [(200 + 52 * number, 100) for number in range(8)]
    board = _paint(board, (0.10, 0.10, 0.11), _drawn(lambda sheet: sheet.rectangle((168, 72, 596, 128), fill=255)))
    board = _paint(board, GOLD, _drawn(_discs(places, 15)))
    return _paint(board, (1.0, 0.93, 0.70), 0.8 * _drawn(_discs([(x - 4, y - 4) for x, y in places], 5), 1.5))


def _solder_bridge(board: Colours, place: tuple[int, int]) -> tuple[Colours, NDArray[np.bool_]]:
    """A blob of solder that joins two legs of the chip."""
    x, y = place
    blob = _drawn(lambda sheet: sheet.ellipse((x - 14, y - 56, x + 34, y + 56), fill=255), 2)
    shine = _drawn(_discs([(x, y - 10)], 7), 3)
    return _paint(_paint(board, TIN, blob), (1.0, 1.0, 1.0), 0.9 * shine), blob > 0.5


def _placed(colours: Colours, mask: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Colours, NDArray[np.bool_]]:
    """Shifts and turns a drawing a little, as parts lie in a holder."""
    turn = np.array(cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), rng.uniform(-0.4, 0.4), 1.0), dtype=np.float64)
    turn[:, 2] += rng.uniform(-3, 3, 2)
    moved = cv2.warpAffine(colours, turn, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    moved_mask = cv2.warpAffine(mask.astype(np.uint8), turn, (CANVAS, CANVAS), flags=cv2.INTER_NEAREST)
    return np.asarray(moved, dtype=np.float32), moved_mask.astype(bool)


# -- fabric -----------------------------------------------------------------------------------------------------------

THREADS = 34  # across the picture
WARP = (0.72, 0.66, 0.56)
WEFT = (0.45, 0.52, 0.60)
CUT = (0.18, -0.12, 0.30, 0.62)  # centre x, centre y, half length, direction in radians


def _fabric(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A plain weave of sand and blue threads."""
    x, y = _coordinates()
    x = x + 0.006 * _noise(rng, 180)
    y = y + 0.006 * _noise(rng, 180)
    if not defective:
        return _weave(rng, x, y), _nowhere()
    along, across, opening = _cut_axes(x, y)
    # Threads give way to both sides of the cut.
    push = np.sign(across) * opening * np.exp(-np.abs(across) / 0.10)
    turn = CUT[3]
    cloth = _weave(rng, x + np.sin(turn) * push, y - np.cos(turn) * push)
    hole = np.clip((opening * (1 + 0.18 * _noise(rng, 10)) - np.abs(across)) * CANVAS / 8, 0, 1)
    depth = np.broadcast_to(np.array([0.05, 0.045, 0.04], dtype=np.float32), cloth.shape)
    shadow = _blur(hole, 10)
    cloth = _paint(cloth * (1 - 0.45 * shadow)[..., None], depth.astype(np.float32), hole)
    fringe = _drawn(_loose_threads(rng), 1.2)
    cloth = _paint(cloth, WARP, 0.9 * fringe)
    return cloth, (hole > 0.5) | (fringe > 0.5)


def _cut_axes(x: Plane, y: Plane) -> tuple[Plane, Plane, Plane]:
    """Coordinates along and across the cut, and its half width there."""
    centre_x, centre_y, half, turn = CUT
    along = (x - centre_x) * np.cos(turn) + (y - centre_y) * np.sin(turn)
    across = -(x - centre_x) * np.sin(turn) + (y - centre_y) * np.cos(turn)
    opening = 0.055 * np.sqrt(np.clip(1 - (along / half) ** 2, 0, 1))
    return along, across, opening.astype(np.float32)


def _weave(rng: np.random.Generator, x: Plane, y: Plane) -> Colours:
    """Threads over and under each other; x, y: where on the cloth each pixel lies."""
    column, row = (x + 1) * THREADS / 2, (y + 1) * THREADS / 2
    profile_x, profile_y = np.abs(np.sin(np.pi * column)), np.abs(np.sin(np.pi * row))
    over = np.where((np.floor(column) + np.floor(row)) % 2 == 0, 1.0, -1.0)
    warp_height = profile_x**0.6 * (0.62 + 0.38 * over * profile_y)
    weft_height = profile_y**0.6 * (0.62 - 0.38 * over * profile_x)
    on_top = np.clip((warp_height - weft_height) * 8 + 0.5, 0, 1).astype(np.float32)
    warp = _thread(rng, WARP, column, _noise(rng, 2.5, 14))
    weft = _thread(rng, WEFT, row, _noise(rng, 14, 2.5))
    height = np.maximum(warp_height, weft_height).astype(np.float32)
    light = (0.35 + 0.75 * height) * np.clip(_shade(_blur(height * 9, 1.2), 0.45), 0.5, 1.6)
    return np.asarray(_paint(weft, warp, on_top) * light[..., None], dtype=np.float32)


def _thread(rng: np.random.Generator, colour: Sequence[float], number: Plane, fibres: Plane) -> Colours:
    """The colour of each thread, with its fibres; no two threads are quite alike."""
    tones = 1 + 0.05 * rng.normal(0, 1, 2 * THREADS)
    tone = tones[np.clip(np.floor(number).astype(int) + THREADS // 2, 0, 2 * THREADS - 1)]
    return np.asarray((tone * (1 + 0.05 * fibres))[..., None] * np.array(colour), dtype=np.float32)


def _loose_threads(rng: np.random.Generator) -> Callable[[ImageDraw.ImageDraw], None]:
    """Broken ends that stick into the cut from both sides."""
    centre_x, centre_y, half, turn = CUT

    def draw(sheet: ImageDraw.ImageDraw) -> None:
        for _ in range(26):
            at, side = rng.uniform(-0.9, 0.9), rng.choice((-1, 1))
            edge = side * 0.06 * np.sqrt(1 - at**2)
            steps = np.linspace(0, 1, 8)
            along = at * half + rng.normal(0, 0.025) * steps**2
            across = edge * (1.15 - rng.uniform(0.5, 1.3) * steps)
            x = centre_x + along * np.cos(turn) - across * np.sin(turn)
            y = centre_y + along * np.sin(turn) + across * np.cos(turn)
            points = [((a + 1) * CANVAS / 2, (b + 1) * CANVAS / 2) for a, b in zip(x, y, strict=True)]
            sheet.line(points, fill=int(rng.integers(130, 255)), width=int(rng.integers(3, 6)))

    return draw


# -- concrete ---------------------------------------------------------------------------------------------------------


def _concrete(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A cast wall with pores and stains; its defect is a crack with a branch."""
    level = 0.58 + 0.035 * _noise(rng, 260) + 0.02 * _noise(rng, 60) + 0.018 * _noise(rng, 8) + 0.016 * _noise(rng, 2.5)
    pores = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    for _ in range(90):
        x, y = rng.uniform(0, CANVAS, 2)
        pores = np.maximum(pores, _drawn_at((x, y), rng.uniform(1.5, 5)))
    wall = (level * (1 - 0.4 * pores))[..., None] * np.array([1.0, 0.985, 0.95])
    if not defective:
        return np.asarray(wall, dtype=np.float32), _nowhere()
    main = _walk(rng, (0.30, 0.16), (0.62, 0.86))
    branch = _walk(rng, main[len(main) // 2], (0.84, 0.62))

    def lines(sheet: ImageDraw.ImageDraw) -> None:
        for points, width in ((main, 13), (branch, 8)):
            sheet.line([(CANVAS * x, CANVAS * y) for x, y in points], fill=255, width=width, joint="curve")

    crack = np.clip(1.4 * _drawn(lines, 2) * (1 + 0.25 * _noise(rng, 14)), 0, 1)
    wall = _paint(np.asarray(wall, dtype=np.float32), (0.11, 0.10, 0.09), 0.95 * crack)
    lip = np.roll(crack, (-5, -5), (0, 1)) * (1 - crack)
    return _paint(wall, (0.78, 0.77, 0.73), 0.35 * lip), _blur(crack, 3) > 0.3


def _drawn_at(centre: tuple[float, float], radius: float) -> Plane:
    """A soft disc, drawn in its own neighbourhood only."""
    plane = np.zeros((CANVAS, CANVAS), dtype=np.float32)
    cv2.circle(plane, (round(centre[0]), round(centre[1])), max(1, round(radius)), 1.0, -1, cv2.LINE_AA)
    return plane


def _walk(
    rng: np.random.Generator, start: tuple[float, float], end: tuple[float, float], steps: int = 22
) -> list[tuple[float, float]]:
    """A jagged way between two places, in shares of the side."""
    along = np.linspace(0, 1, steps)[:, None]
    straight = np.array(start) + along * (np.array(end) - np.array(start))
    aside = np.cumsum(rng.normal(0, 0.012, (steps, 2)), axis=0)
    return [(float(x), float(y)) for x, y in straight + aside - along * aside[-1]]


# -- capsule ----------------------------------------------------------------------------------------------------------

BODY, CAP = (0.83, 0.36, 0.10), (0.10, 0.095, 0.10)
CAPSULE_LENGTH, CAPSULE_RADIUS = 0.50, 0.24  # half the straight part, and the ends


def _capsule(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A gelatine capsule on a light tray; its defects are a broken end and a dent."""
    x, y = _coordinates()
    shift_x, shift_y = rng.uniform(-0.012, 0.012, 2)
    x, y = x - shift_x, y - shift_y
    inside = CAPSULE_RADIUS - np.hypot(np.maximum(np.abs(x) - CAPSULE_LENGTH, 0), y)
    mask = _nowhere()
    if defective:
        bite = np.hypot(x - 0.76, y + 0.10) - 0.15 - 0.015 * _noise(rng, 20)
        mask |= (bite < 0) & (inside > 0)
        inside = np.minimum(inside, bite)
    cover = np.clip(inside * CANVAS / 3 + 0.5, 0, 1).astype(np.float32)
    round_light = np.sqrt(np.clip(1 - (y / CAPSULE_RADIUS) ** 2, 0, 1))
    shell = np.where((x < 0.06)[..., None], np.array(CAP), np.array(BODY)) * (0.55 + 0.5 * round_light)[..., None]
    seam = np.exp(-(((x - 0.06) / 0.008) ** 2))
    shell = shell * (1 - 0.35 * seam)[..., None] + (0.004 * _noise(rng, 4))[..., None]
    shine = np.exp(-(((y + 0.10) / 0.022) ** 2)) * np.clip(1.5 - 2 * np.abs(x) / 0.6, 0, 1)
    shell = _paint(np.asarray(shell, dtype=np.float32), (1, 1, 1), 0.45 * shine.astype(np.float32))
    mark = _drawn(lambda sheet: sheet.text((590, 490), "500", font=ImageFont.load_default(88), fill=255), 0.8)
    shell = _paint(shell, (0.97, 0.95, 0.92), 0.9 * mark)
    if defective:
        dent = np.exp(-(((x + 0.33) / 0.06) ** 2 + ((y - 0.04) / 0.05) ** 2)).astype(np.float32)
        shell = _paint(shell, (0.62, 0.60, 0.58), 0.9 * dent * np.clip(0.75 + 0.35 * _noise(rng, 16), 0, 1))
        mask |= dent > 0.35
    tray = (0.80 + 0.012 * _noise(rng, 3) + 0.01 * _noise(rng, 160))[..., None] * np.array([0.97, 0.985, 1.0])
    shadow = np.roll(_blur(cover, 22), (26, 14), (0, 1))
    return _paint(np.asarray(tray * (1 - 0.4 * shadow)[..., None], dtype=np.float32), shell, cover), mask


# -- hazelnut ---------------------------------------------------------------------------------------------------------


def _hazelnut(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A hazelnut on a black belt, its scar to the left; its defect is a cut through the shell."""
    x, y = _coordinates()
    shift_x, shift_y = rng.uniform(-0.02, 0.02, 2)
    x, y = x - shift_x, y - shift_y
    angle = np.arctan2(y, x)
    radius = np.hypot(x, y * 1.10) / (0.66 + 0.05 * np.cos(angle) ** 3)
    ball = np.sqrt(np.clip(1 - radius**2, 0, 1)).astype(np.float32)
    cover = np.clip((1 - radius) * CANVAS * 0.33 / 3 + 0.5, 0, 1).astype(np.float32)
    streaks = _noise(rng, 120, 7) * 0.05 + _noise(rng, 30, 4) * 0.035 + _noise(rng, 5) * 0.02
    shell = (0.62 + 0.45 * ball + streaks)[..., None] * np.array([0.56, 0.33, 0.17])
    scar = np.clip((-0.36 - x - 0.25 * y**2 + 0.012 * _noise(rng, 30)) * CANVAS / 24 + 0.5, 0, 1).astype(np.float32)
    rough = (0.60 + 0.25 * ball + 0.05 * _noise(rng, 5))[..., None] * np.array([0.72, 0.56, 0.38])
    shell = _paint(np.asarray(shell, dtype=np.float32), np.asarray(rough, dtype=np.float32), scar)
    shine = np.exp(-(((x + 0.05) / 0.16) ** 2 + ((y + 0.28) / 0.09) ** 2)).astype(np.float32)
    shell, mask = _paint(shell, (1.0, 0.93, 0.85), 0.35 * shine), _nowhere()
    if defective:
        points = _walk(rng, (0.50, 0.66), (0.74, 0.43), 12)
        slit = _drawn(lambda sheet: sheet.line([(CANVAS * a, CANVAS * b) for a, b in points], fill=255, width=34), 4)
        shell = _paint(
            shell, (0.88, 0.80, 0.66), np.clip(1.3 * slit, 0, 1) * np.clip(0.85 + 0.2 * _noise(rng, 9), 0, 1)
        )
        edge = np.roll(slit, (12, 10), (0, 1)) * (1 - slit)
        shell, mask = _paint(shell, (0.16, 0.08, 0.04), 0.8 * edge), slit > 0.35
    belt = (0.055 + 0.008 * _noise(rng, 3))[..., None] * np.array([1.0, 1.0, 1.05])
    return _paint(np.asarray(belt, dtype=np.float32), shell, cover), mask


# -- bottle -----------------------------------------------------------------------------------------------------------


def _bottle(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """The mouth of a glass bottle from above, lit from below; its defect is a piece broken off the rim."""
    x, y = _coordinates()
    shift_x, shift_y = rng.uniform(-0.012, 0.012, 2)
    x, y = x - shift_x, y - shift_y
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    rings = {0.80: (0.05, 0.06, 0.035), 0.72: (0.42, 0.44, 0.20), 0.665: (0.09, 0.10, 0.05), 0.575: (0.62, 0.64, 0.36),
             0.53: (0.10, 0.10, 0.06), 0.47: (0.93, 0.94, 0.86)}  # fmt: skip
    view = (0.95 + 0.006 * _noise(rng, 3))[..., None] * np.array([1.0, 1.0, 0.985])
    view = np.asarray(view, dtype=np.float32)
    for outer, colour in rings.items():
        wave = outer + 0.004 * np.sin(3 * angle + outer * 40)
        tone = 1 + (0.18 if outer > 0.5 else 0) * np.cos(2 * angle - 0.7 + outer * 9) + 0.02 * _noise(rng, 40)
        band = np.asarray(tone[..., None] * np.array(colour), dtype=np.float32)
        view = _paint(view, band, np.clip((wave - radius) * CANVAS / 6 + 0.5, 0, 1).astype(np.float32))
    mask = _nowhere()
    if defective:
        about = np.abs(np.angle(np.exp(1j * (angle - 0.55)))) - 0.33 - 0.05 * _noise(rng, 26)
        depth = 0.585 - radius + 0.014 * _noise(rng, 18)
        piece = np.clip(np.minimum(-about * 0.6, -depth) * CANVAS / 5 + 0.5, 0, 1).astype(np.float32)
        piece = piece * np.clip((0.76 - radius) * CANVAS / 5 + 0.5, 0, 1)
        facets = np.clip(0.55 + 0.35 * _noise(rng, 34, 12), 0.1, 1)[..., None] * np.array([0.80, 0.82, 0.62])
        view, mask = _paint(view, np.asarray(facets, dtype=np.float32), piece.astype(np.float32)), piece > 0.5
    return view, mask


# -- gear -------------------------------------------------------------------------------------------------------------

TEETH = 15


def _gear(rng: np.random.Generator, defective: bool) -> tuple[Colours, NDArray[np.bool_]]:
    """A brass gear wheel; its defect is a broken tooth."""
    x, y = _coordinates()
    shift_x, shift_y = rng.uniform(-0.015, 0.015, 2)
    radius, angle = np.hypot(x - shift_x, y - shift_y), np.arctan2(y - shift_y, x - shift_x)
    whole = 0.66 + 0.085 * np.tanh(2.5 * np.cos(TEETH * angle))
    outer, mask = whole, _nowhere()
    if defective:
        broken = np.abs(angle - 2 * np.pi * 2 / TEETH) < np.pi / TEETH
        outer = np.where(broken, np.minimum(whole, 0.60 + 0.008 * _noise(rng, 20)), whole)
        mask = (radius > outer) & (radius < whole)
    turns = np.arange(5) * 2 * np.pi / 5
    holes = np.stack([np.hypot(x - 0.38 * np.cos(turn), y - 0.38 * np.sin(turn)) for turn in turns])
    inside = np.minimum(np.minimum(outer - radius, radius - 0.15), holes.min(axis=0) - 0.09)
    brass = _turned_steel(rng, radius, angle, inside) * np.array([1.0, 0.84, 0.52])
    cover = np.clip(inside * CANVAS / 3 + 0.5, 0, 1)
    return _paint(_felt(rng, cover), np.asarray(brass, dtype=np.float32), cover), mask


PARTS: dict[str, Callable[[np.random.Generator, bool], tuple[Colours, NDArray[np.bool_]]]] = {
    "washer": _washer,
    "pcb": _pcb,
    "fabric": _fabric,
    "concrete": _concrete,
    "capsule": _capsule,
    "hazelnut": _hazelnut,
    "bottle": _bottle,
    "gear": _gear,
}


if __name__ == "__main__":
    write_examples(Path(__file__).parent / "examples")
