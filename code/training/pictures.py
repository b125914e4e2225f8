"""What a run looks like: its curves, and what the model sees and says of a photo on the way."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from anomalygpt.model.encoder import ImageSpec
from anomalygpt.training.metrics_log import read_metrics

CURVES = ("total", "answer", "focal", "dice", "token_accuracy", "verdict_accuracy")


def sample_sheet(
    images: Tensor, targets: Tensor, maps: Tensor, answers: list[str], spec: ImageSpec, path: Path
) -> None:
    """Writes a PNG with a row a photo: the photo, its target, the map on a fixed 0..1 scale, and the answer.

    Args:
        images: (B, 3, S, S), normalised as the encoder takes them.
        targets, maps: (B, 1, S', S') in 0..1.
    """
    from matplotlib.figure import Figure

    rows = len(images)
    figure = Figure(figsize=(7.5, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False)
    for row, image, target, drawn, answer in zip(panels, images, targets, maps, answers, strict=True):
        row[0].imshow(_pixels(image, spec))
        row[1].imshow(target[0].cpu(), cmap="gray", vmin=0, vmax=1)
        row[2].imshow(drawn[0].cpu(), cmap="turbo", vmin=0, vmax=1)
        row[0].set_title(answer, loc="left", fontsize=8)
        for panel in row:
            panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def _pixels(image: Tensor, spec: ImageSpec) -> Image.Image:
    values = image.float().cpu().permute(1, 2, 0).numpy() * np.array(spec.std) + np.array(spec.mean)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


def draw_curves(folder: Path) -> Path:
    """Draws ``curves.png`` from a run's ``metrics.jsonl``: training as a line, validation as dots."""
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    figure = Figure(figsize=(11, 6), layout="constrained")
    for panel, name in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        for kind, style in (("train", "-"), ("validation", "o")):
            points = [(line["step"], line[name]) for line in lines if line["kind"] == kind and name in line]
            if points:
                panel.plot(*zip(*points, strict=True), style, label=kind, alpha=0.8, markersize=5)
                panel.legend(fontsize=8)
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("step", fontsize=8)
        panel.grid(alpha=0.3)
    path = folder / "curves.png"
    figure.savefig(path, dpi=90)
    return path
