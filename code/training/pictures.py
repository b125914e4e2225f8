"""Pictures of a run: the maps and answers of sample photos."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from anomalygpt.files import replacing
from anomalygpt.model.encoder import ImageSpec

LINE = 34  # characters of a caption's line
CAPTION_LINES = 9
# matplotlib's default font, then those that have Chinese characters.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


def installed_fonts() -> list[str]:
    """Those of ``FONTS`` that are here, for matplotlib."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


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

    fonts = installed_fonts()
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
            style = {"fontsize": 8, "fontfamily": fonts, "parse_math": False}
            panel.text(0, 1, caption(*words), va="top", transform=panel.transAxes, **style)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # no font for a language: boxes are drawn
        figure.savefig(temporary, dpi=80)


def caption(question: str | None, answer: str | None) -> str:
    """Question and answer in short lines, without characters that can't be drawn."""
    lines: list[str] = []
    for mark, text in (("Q", question), ("A", answer)):
        shown = "".join(letter if letter.isprintable() else " " for letter in text or "").strip() or "(nothing)"
        lines += textwrap.wrap(f"{mark}: {shown}", LINE, max_lines=CAPTION_LINES, placeholder=" …")
    return "\n".join(lines)
