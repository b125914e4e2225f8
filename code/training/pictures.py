"""Pictures of a run: its curves, and the maps and answers of sample photos."""

import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomalygpt.files import replacing
from anomalygpt.model.encoder import ImageSpec
from anomalygpt.training.metrics_log import read_metrics

CURVES = ("total", "answer", "focal", "dice", "instruction", "token_accuracy", "verdict_accuracy", "lr")
COLUMNS = 4
SMOOTHED_FROM = 60  # points: a longer line gets a running mean
LINE = 34  # characters of a caption's line
CAPTION_LINES = 9
# Those that have Chinese characters, after the one that comes with matplotlib.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


def sample_sheet(
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    talk: Sequence[tuple[str | None, str | None]],
    spec: ImageSpec,
    path: Path,
) -> None:
    """Writes a PNG with one row per photo: the photo, its target, the map on a fixed 0..1 scale, question and answer.

    Args:
        images: (B, 3, S, S), normalised as the encoder takes them.
        targets, maps: (B, 1, S', S') in 0..1.
        talk: B questions and answers; None without a language model.

    Raises:
        OSError: the folder can't be written.
    """
    from matplotlib.figure import Figure

    columns = ["photo", "target", "map"] + ["question, answer"] * any(answer is not None for _, answer in talk)
    figure = Figure(figsize=(2.6 * len(columns), 2.7 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), len(columns), squeeze=False)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=9)
    photos = images.float().cpu().permute(0, 2, 3, 1).numpy() * np.array(spec.std) + np.array(spec.mean)
    for row, photo, target, drawn, words in zip(panels, photos, targets, maps, talk, strict=True):
        row[0].imshow(photo.clip(0, 1))
        row[1].imshow(target[0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        row[2].imshow(drawn[0].float().cpu().numpy(), cmap="turbo", vmin=0, vmax=1)
        for panel in row:
            panel.axis("off")
        for panel in row[3:]:
            panel.text(0, 1, caption(*words), va="top", fontsize=8, fontfamily=_fonts(), transform=panel.transAxes)
    _save(figure, path, dpi=80)


def caption(question: str | None, answer: str | None) -> str:
    """Question and answer in short lines, without characters that can't be drawn."""
    lines: list[str] = []
    for mark, text in (("Q", question), ("A", answer)):
        shown = "".join(letter if letter.isprintable() else " " for letter in text or "").strip() or "(nothing)"
        # A dollar sign would start a formula.
        escaped = f"{mark}: {shown}".replace("$", r"\$")
        lines += textwrap.wrap(escaped, LINE, max_lines=CAPTION_LINES, placeholder=" …")
    return "\n".join(lines)


@cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def _save(figure: Any, path: Path, dpi: int) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font for a language: boxes are drawn
        figure.savefig(temporary, dpi=dpi)


def draw_curves(folder: Path) -> Path:
    """Draws ``curves.png`` from a run's ``metrics.jsonl``: training as a line, validation as dots.

    Raises:
        OSError: the folder can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_metrics(folder)
    names = [name for name in CURVES if any(line.get(name) for line in lines)] or ["total"]
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(3.6 * COLUMNS, 3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for panel in panels[len(names) :]:
        panel.axis("off")
    for panel, name in zip(panels, names, strict=False):
        for kind, style, colour in (("train", "-", "tab:blue"), ("validation", "o", "tab:orange")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind and name in line]
            if points:
                _curve(panel, points, kind, style if len(points) > 1 else "o", colour, smooth=name != "lr")
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=8)
    path = folder / "curves.png"
    _save(figure, path, dpi=90)
    return path


def _curve(panel: Any, points: list[tuple[int, float]], kind: str, style: str, colour: str, *, smooth: bool) -> None:
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    smooth = smooth and kind == "train" and len(points) >= SMOOTHED_FROM
    panel.plot(steps, values, style, color=colour, alpha=0.3 if smooth else 0.9, label=None if smooth else kind)
    if smooth:
        window = len(points) // 20
        mean = np.convolve(values, np.ones(window) / window, "valid")
        panel.plot(steps[window - 1 :], mean, color=colour, label=f"train, mean of {window}")
