"""The best and worst photos of each class, as pictures."""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.datasets.photos import to_rgb
from anomalygpt.evaluation.cells import CellResult
from anomalygpt.evaluation.published import METRICS
from anomalygpt.evaluation.tables import title_of
from anomalygpt.files import replacing
from anomalygpt.inference.results import ImageResult
from anomalygpt.inference.visualize import overlay
from anomalygpt.model.image_decoder import calibrate_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
# matplotlib's default font, then those that have Chinese characters.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")
TILES = ("photo", "mask", "map", "overlay")
GOOD, BAD = "#14612f", "#b41e1e"


class Examples:
    """The photos with the highest and the lowest scores of a class, at most ``KEPT`` of each case."""

    def __init__(self) -> None:
        self._cases: dict[str, list[tuple[float, str, bytes]]] = {case: [] for case in CASES}

    def offer(
        self, photo: str, is_anomalous: bool, image: Image.Image, mask: NDArray[np.bool_], result: ImageResult
    ) -> None:
        """Keeps a photo if it is among the best or worst so far; of equal scores the first name wins.

        ``mask`` is (H, W) of any size, True where anomalous.
        """
        for case, (of_anomalous, highest_first) in CASES.items():
            kept, rank = self._cases[case], -result.score if highest_first else result.score
            if is_anomalous == of_anomalous and (len(kept) < KEPT or (rank, photo) < kept[-1][:2]):
                self._cases[case] = sorted([*kept, (rank, photo, _strip(image, mask, result))])[:KEPT]

    def best(self) -> dict[str, list[tuple[str, bytes]]]:
        """The examples of each case that has any, in order."""
        return {case: [(photo, strip) for _, photo, strip in kept] for case, kept in self._cases.items() if kept}


def _strip(image: Image.Image, mask: NDArray[np.bool_], result: ImageResult) -> bytes:
    """A JPEG of ``TILES`` side by side. All maps have the same colour scale, whose middle is the threshold."""
    from matplotlib import colormaps

    photo = to_rgb(image)
    scale = TILE / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    colours = (colormaps["turbo"](calibrate_map(result.map, result.threshold))[..., :3] * 255).astype(np.uint8)
    tiles = [
        photo.resize(size, Image.Resampling.LANCZOS),
        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).resize(size, Image.Resampling.BILINEAR),
        Image.fromarray(colours).resize(size, Image.Resampling.BILINEAR),
        overlay(photo, result.map, result.threshold, result.regions).resize(size, Image.Resampling.LANCZOS),
    ]
    strip = Image.new("RGB", (len(TILES) * TILE, TILE), "white")
    for number, tile in enumerate(tiles):
        strip.paste(tile.convert("RGB"), (number * TILE + (TILE - size[0]) // 2, (TILE - size[1]) // 2))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=92)
    return file.getvalue()


def write_pictures(folder: Path, results: Sequence[CellResult]) -> list[Path]:
    """Writes a sheet per class and number of references, of the first round."""
    figures: dict[Path, Figure] = {}
    for shots in sorted({result.cell.shots for result in results}):
        own = [result for result in results if result.cell.shots == shots]
        for result in (result for result in own if result.cell.round == own[0].cell.round):
            name = re.sub(r"[^\w -]", "_", result.cell.class_name)
            figures[folder / f"cases_{title_of(shots).lower()}" / f"{name}.png"] = _sheet(result)
    for path, figure in figures.items():
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about long texts, and letters that no font has
            figure.savefig(temporary, dpi=110)
    return list(figures)


def _sheet(result: CellResult) -> "Figure":
    """The examples of a class: photo, mask, map, verdict and answer, the worst first."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = [name for name in FONTS if name in installed]
    areas = [f"{METRICS[key]} {100 * area:.1f}" for key in AREAS if (area := result.metrics[key]) is not None]
    title = f"{result.cell.class_name}, {title_of(result.cell.shots).lower()}: {', '.join(areas) or 'no areas'}"
    figure = Figure(figsize=(15, 0.8 + 2.7 * len(result.examples)), layout="constrained")
    figure.suptitle(f"{title}\n{', '.join(TILES)}", family=fonts, parse_math=False)
    photos = {photo.photo: photo for photo in result.photos}
    panels = figure.subplots(max(1, len(result.examples)), KEPT, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, (case, examples) in zip(panels, result.examples.items(), strict=False):
        for axes, (name, strip) in zip(row, examples, strict=False):
            photo = photos[name]
            right = photo.verdict == photo.is_anomalous
            verdict = f"{'defective' if photo.verdict else 'good'}, {'right' if right else 'WRONG'}"
            scores = f"score {photo.score:.3f}, threshold {photo.threshold:.3f}"
            lines = [f"{case}: {name}", f"{scores}; {verdict} ({photo.verdict_from})"]
            lines += [textwrap.fill(photo.answer, 100, max_lines=2, placeholder="…")] if photo.answer else []
            axes.imshow(Image.open(io.BytesIO(strip)))
            style = {"fontsize": 8, "family": fonts, "color": GOOD if right else BAD, "parse_math": False}
            axes.set_title("\n".join(lines), loc="left", **style)
    return figure
