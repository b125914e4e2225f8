"""The best and worst photos of each class, as pictures."""

import re
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from anomalygpt.datasets.photos import to_rgb
from anomalygpt.evaluation.cells import Cell
from anomalygpt.evaluation.tables import title_of
from anomalygpt.files import replacing
from anomalygpt.inference.results import ImageResult
from anomalygpt.model.image_decoder import calibrate_map

# Cases in the order of a sheet: (anomalous photos, highest score first).
CASES = {
    "defects with the lowest scores": (True, False),
    "good photos with the highest scores": (False, True),
    "defects with the highest scores": (True, True),
    "good photos with the lowest scores": (False, False),
}
KEPT = 2  # photos per case
TILE = (180, 180)  # a picture, in pixels
GOOD, BAD = "#14612f", "#b41e1e"
CHINESE = re.compile("CJK|Source Han Sans|WenQuanYi|SimHei|YaHei|PingFang")  # in the names of fonts


class Examples(dict[str, list[tuple[float, str, Image.Image]]]):
    """By case, the photos with the highest or the lowest scores of a class, at most ``KEPT``: rank, name, strip."""

    def offer(self, photo: str, is_bad: bool, mask: NDArray[np.bool_], result: ImageResult) -> None:
        """Keeps a photo, with its mask of any size, if it is among the best or worst so far."""
        for case, (of_bad, highest_first) in CASES.items():
            kept, rank = self.setdefault(case, []), -result.score if highest_first else result.score
            if is_bad == of_bad and (len(kept) < KEPT or (rank, photo) < kept[-1][:2]):
                self[case] = sorted([*kept, (rank, photo, _strip(mask, result))], key=lambda one: one[:2])[:KEPT]


def _strip(mask: NDArray[np.bool_], result: ImageResult) -> Image.Image:
    """Photo, mask, map and overlay. All maps have the same colour scale, whose middle is the threshold."""
    from matplotlib import colormaps

    photo = to_rgb(result.photo)
    colours = (colormaps["turbo"](calibrate_map(result.map, result.threshold))[..., :3] * 255).astype(np.uint8)
    marked = Image.fromarray(mask).convert("RGB").resize(photo.size)
    tiles = (photo, marked, Image.fromarray(colours), result.plot())
    return Image.fromarray(np.hstack([np.asarray(ImageOps.pad(tile, TILE, color="white")) for tile in tiles]))


def write_sheet(folder: Path, cell: Cell, result: dict[str, Any], examples: Examples) -> None:
    """Draws the examples of a class into a PNG file: photo, mask, map, verdict and answer, the worst first."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    shown = [(case, kept) for case in CASES if (kept := examples.get(case))]
    figure = Figure(figsize=(15, 0.8 + 2.7 * len(shown)), layout="constrained")
    fonts = sorted({font.name for font in fontManager.ttflist if CHINESE.search(font.name)})
    style: dict[str, Any] = {"family": ["DejaVu Sans", *fonts], "parse_math": False}  # the first that has a letter
    photos = {photo["photo"]: photo for photo in result["photos"]}
    title = f"{cell.class_name}, {title_of(cell.shots).lower()}: photo, mask, map, overlay"
    if not fonts and re.search("[⺀-鿿]", str([title, *photos.values()])):
        title += "\n(boxes: Chinese, for which this system has no font; install one such as Noto Sans CJK)"
    figure.suptitle(title, **style)
    panels = figure.subplots(max(1, len(shown)), KEPT, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (case, kept) in zip(panels, shown, strict=False):
        for axes, (_, name, strip) in zip(row, kept, strict=False):
            photo = photos[name]
            right = photo["verdict"] == photo["is_anomalous"]
            verdict = f"{'defective' if photo['verdict'] else 'good'}, {'right' if right else 'WRONG'}"
            scores = f"score {photo['score']:.3f}, threshold {photo['threshold']:.3f}"
            answer = textwrap.fill(photo["answer"], 100, max_lines=2, placeholder="…")
            text = f"{case}: {name}\n{scores}; {verdict} ({photo['verdict_from']})\n{answer}".strip()
            axes.imshow(strip)
            axes.set_title(text, loc="left", fontsize=8, color=GOOD if right else BAD, **style)
    name = re.sub(r"[^\w -]", "_", cell.class_name)
    with replacing(folder / f"{name}.png") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about long texts, and letters that no font has
        figure.savefig(path, dpi=110)
