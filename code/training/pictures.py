"""Pictures of a run: its curves, and the maps and answers of sample photos."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomalygpt.files import replacing
from anomalygpt.model.encoder import ImageSpec
from anomalygpt.training.metrics_log import read_metrics

CURVES = ("total", "answer", "focal", "dice", "instruction", "token_accuracy", "verdict_accuracy", "lr")
LINE = 34  # characters of a caption's line
CAPTION_LINES = 9
# matplotlib's default font, then those that have Chinese characters.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


def sample_sheet(
    images: Tensor,
    targets: Tensor,
    maps: Tensor,
    dialogues: Sequence[tuple[str | None, str | None]],
    spec: ImageSpec,
    path: Path,
) -> None:
    """Writes a PNG with one row per photo: the photo, its target, the map on a fixed 0..1 scale, question and answer.

    Args:
        images: (B, 3, S, S), normalised as the encoder takes them.
        targets, maps: (B, 1, S', S') in 0..1.
        dialogues: B questions and answers; None without a language model.

    Raises:
        OSError: it can't be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = [name for name in FONTS if name in installed]
    columns = ["photo", "target", "map"] + ["question, answer"] * any(answer is not None for _, answer in dialogues)
    figure = Figure(figsize=(2.6 * len(columns), 2.7 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), len(columns), squeeze=False)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=9)
    photos = images.float().cpu().permute(0, 2, 3, 1).numpy() * np.array(spec.std) + np.array(spec.mean)
    for row, photo, target, drawn, words in zip(panels, photos, targets, maps, dialogues, strict=True):
        row[0].imshow(photo.clip(0, 1))
        row[1].imshow(target[0].cpu().numpy(), cmap="gray", vmin=0, vmax=1)
        row[2].imshow(drawn[0].float().cpu().numpy(), cmap="turbo", vmin=0, vmax=1)
        for panel in row:
            panel.axis("off")
        for panel in row[3:]:
            panel.text(0, 1, caption(*words), va="top", fontsize=8, fontfamily=fonts, transform=panel.transAxes)
    _save(figure, path, dpi=80)


def caption(question: str | None, answer: str | None) -> str:
    """Question and answer in short lines, without characters that can't be drawn."""
    lines: list[str] = []
    for mark, text in (("Q", question), ("A", answer)):
        shown = "".join(letter if letter.isprintable() else " " for letter in text or "").strip() or "(nothing)"
        escaped = f"{mark}: {shown}".replace("$", r"\$")  # a dollar sign would start a formula
        lines += textwrap.wrap(escaped, LINE, max_lines=CAPTION_LINES, placeholder=" …")
    return "\n".join(lines)


def draw_curves(folder: Path) -> None:
    """Draws ``curves.png`` from a run's ``metrics.jsonl``: training as a line, validation as dots; raises OSError."""
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    figure = Figure(figsize=(14.4, 6), layout="constrained")
    for panel, name in zip(figure.subplots(2, len(CURVES) // 2).flat, CURVES, strict=True):
        if not any(line.get(name) for line in lines):
            panel.axis("off")
            continue
        for kind, style in (("train", "-"), ("validation", "o")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind and name in line]
            if points:
                panel.plot(*zip(*points, strict=True), style, label=kind)
        panel.set(title=name.replace("_", " "), xlabel="step")
        panel.grid(alpha=0.3)
        panel.legend()
    _save(figure, folder / "curves.png", dpi=90)


def _save(figure: Any, path: Path, dpi: int) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font for a language: boxes are drawn
        figure.savefig(temporary, dpi=dpi)
