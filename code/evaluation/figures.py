"""The best and worst photos of each class, as pictures."""

import re
import textwrap
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.photos import to_rgb
from anomalygpt.datasets.transforms import binary_image
from anomalygpt.evaluation.cells import Cell
from anomalygpt.evaluation.tables import METRICS, title_of
from anomalygpt.files import replacing
from anomalygpt.inference.results import ImageResult
from anomalygpt.inference.visualize import overlay
from anomalygpt.model.image_decoder import calibrate_map

# Cases in the order of a sheet: (anomalous photos, highest score first).
CASES = {
    "defects with the lowest scores": (True, False),
    "good photos with the highest scores": (False, True),
    "defects with the highest scores": (True, True),
    "good photos with the lowest scores": (False, False),
}
KEPT = 2  # photos per case
TILE = 180  # the longer side of a picture, in pixels
AREAS = ("image_auroc", "pixel_auroc", "aupro")
CHINESE = re.compile("[⺀-鿿豈-﫿︰-﹏！-￮]")
NO_FONT = "“?”: Chinese, for which this system has no font (install one such as Noto Sans CJK)"
TILES = ("photo", "mask", "map", "overlay")
GOOD, BAD = "#14612f", "#b41e1e"


class Examples(dict[str, list[tuple[float, str, Image.Image]]]):
    """By case, the photos with the highest or the lowest scores of a class, at most ``KEPT``: rank, name, strip."""

    def offer(
        self, photo: str, is_anomalous: bool, image: Image.Image, mask: NDArray[np.bool_], result: ImageResult
    ) -> None:
        """Keeps a photo if it is among the best or worst so far; of equal scores the first name wins.

        ``mask`` is (H, W) of any size, True where anomalous.
        """
        for case, (of_anomalous, highest_first) in CASES.items():
            kept, rank = self.setdefault(case, []), -result.score if highest_first else result.score
            if is_anomalous == of_anomalous and (len(kept) < KEPT or (rank, photo) < kept[-1][:2]):
                self[case] = sorted([*kept, (rank, photo, _strip(image, mask, result))], key=lambda one: one[:2])[:KEPT]


def _strip(image: Image.Image, mask: NDArray[np.bool_], result: ImageResult) -> Image.Image:
    """``TILES`` side by side. All maps have the same colour scale, whose middle is the threshold."""
    from matplotlib import colormaps

    photo = to_rgb(image)
    colours = (colormaps["turbo"](calibrate_map(result.map, result.threshold))[..., :3] * 255).astype(np.uint8)
    overlaid = overlay(photo, result.map, result.threshold, result.regions)
    strip = Image.new("RGB", (len(TILES) * TILE, TILE), "white")
    scale = TILE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    for number, tile in enumerate((photo, binary_image(mask), Image.fromarray(colours), overlaid)):
        corner = (number * TILE + (TILE - size[0]) // 2, (TILE - size[1]) // 2)
        strip.paste(tile.convert("RGB").resize(size, Image.Resampling.BICUBIC), corner)
    return strip


@cache
def chinese_font() -> Path | None:
    """A font of the system with Chinese characters; matplotlib's own list is as old as its cache, so files are read."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    for path in sorted(findSystemFonts(), key=lambda path: ("Regular" not in path, path)):
        with suppress(RuntimeError):  # not a font that FreeType can read
            if "LastResort" not in path and FT2Font(path).get_char_index(ord("齿")):
                return Path(path)
    return None


def write_sheet(folder: Path, cell: Cell, result: dict[str, Any], examples: Examples) -> None:
    """Draws the examples of a class into a PNG file: photo, mask, map, verdict and answer, the worst first."""
    from matplotlib.figure import Figure

    shown = [(case, kept) for case in CASES if (kept := examples.get(case))]
    areas = [f"{METRICS[key]} {100 * area:.1f}" for key in AREAS if (area := result["metrics"][key]) is not None]
    title = f"{cell.class_name}, {title_of(cell.shots).lower()}: {', '.join(areas) or 'no areas'}"
    figure = Figure(figsize=(15, 0.8 + 2.7 * len(shown)), layout="constrained")
    photos = {photo["photo"]: photo for photo in result["photos"]}
    texts = [title, *(photos[name]["answer"] + name for _, kept in shown for _, name, _ in kept)]
    chinese = any(map(CHINESE.search, texts))
    font = chinese_font() if chinese else None
    style: dict[str, Any] = {"font": font or "DejaVu Sans", "parse_math": False}

    def drawn(text: str) -> str:
        return CHINESE.sub("?", text) if chinese and not font else text

    lines = [drawn(title), ", ".join(TILES), *([NO_FONT] if chinese and not font else [])]
    figure.suptitle("\n".join(lines), **style)
    panels = figure.subplots(max(1, len(shown)), KEPT, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (case, kept) in zip(panels, shown, strict=False):
        for axes, (_, name, strip) in zip(row, kept, strict=False):
            photo = photos[name]
            right = photo["verdict"] == photo["is_anomalous"]
            verdict = f"{'defective' if photo['verdict'] else 'good'}, {'right' if right else 'WRONG'}"
            scores = f"score {photo['score']:.3f}, threshold {photo['threshold']:.3f}"
            lines = [f"{case}: {name}", f"{scores}; {verdict} ({photo['verdict_from']})"]
            lines += [textwrap.fill(photo["answer"], 100, max_lines=2, placeholder="…")] if photo["answer"] else []
            axes.imshow(strip)
            axes.set_title(drawn("\n".join(lines)), loc="left", fontsize=8, color=GOOD if right else BAD, **style)
    name = re.sub(r"[^\w -]", "_", cell.class_name)
    with replacing(folder / f"{name}.png") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about long texts, and other letters that no font has
        figure.savefig(path, dpi=110)
