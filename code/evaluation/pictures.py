"""Pictures of an evaluation: the best and worst cases of each class, and the curves behind the areas."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from anomalygpt.evaluation.examples import CASES, TILE, TILES, Example
from anomalygpt.evaluation.pixels import PRO_LIMIT
from anomalygpt.evaluation.report import title_of
from anomalygpt.evaluation.results import METRICS, CategoryResult, ShotsResult
from anomalygpt.files import replacing

MARGIN = 14
LINE = 17  # of text below a strip: the photo's name and score, the verdict, the answer
HEADING = 30
WIDTH = len(TILES) * TILE
TEXT_SIZE, SMALL_SIZE = 15, 12
INK, GREY, GOOD, BAD = (25, 25, 25), (110, 110, 110), (20, 110, 50), (180, 30, 30)
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "SimHei.ttf", "PingFang.ttc", "msyh.ttc")


def write_pictures(folder: Path, by_shots: Sequence[ShotsResult]) -> list[Path]:
    """Writes a sheet a class and a figure of curves for each number of references, of their first rounds.

    Raises:
        OSError: the folder can't be written.
    """
    written = []
    for found in by_shots:
        first = [found.of_class(name)[0] for name in found.class_names]
        name = title_of(found.shots).lower()
        for result in first:
            path = folder / f"cases_{name}" / f"{_file_name(result.cell.class_name)}.png"
            with replacing(path) as temporary:
                sheet(result).save(temporary)
            written.append(path)
        written.append(_write_curves(folder / f"curves_{name}.png", first, title_of(found.shots)))
    return written


def _file_name(class_name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_ " else "_" for letter in class_name)


def sheet(result: CategoryResult) -> Image.Image:
    """Best and worst cases of a class: photo, mask, map, and what was said, the worst first."""
    cases = [(title, result.examples.cases[case]) for case, title in CASES.items() if result.examples.cases[case]]
    columns = max((len(found) for _, found in cases), default=1)
    lines = 3 if any(row.answer for row in result.rows) else 2
    cell = (WIDTH + 2 * MARGIN, TILE + lines * LINE + MARGIN)
    size = (columns * cell[0] + MARGIN, HEADING + MARGIN + len(cases) * (cell[1] + HEADING))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN // 2), _heading(result), fill=INK, font=_font(TEXT_SIZE, bold=True))
    rows = {row.photo: row for row in result.rows}
    top = HEADING + MARGIN
    for title, found in cases:
        draw.text((MARGIN, top), f"{title}  ({', '.join(TILES)})", fill=GREY, font=_font(TEXT_SIZE))
        for number, example in enumerate(found):
            left = MARGIN + number * cell[0]
            page.paste(Image.open(io.BytesIO(example.strip)), (left, top + HEADING - MARGIN // 2))
            _caption(draw, (left, top + HEADING + TILE - MARGIN // 2 + 4), example, rows[example.photo])
        top += cell[1] + HEADING
    return page


def _heading(result: CategoryResult) -> str:
    shown = [key for key in ("image_auroc", "pixel_auroc", "aupro") if result.metrics[key] is not None]
    numbers = ", ".join(f"{METRICS[key]} {100 * (result.metrics[key] or 0):.1f}" for key in shown)
    return f"{result.cell.class_name}, {title_of(result.cell.shots).lower()}: {numbers or 'no areas'}"


def _caption(draw: ImageDraw.ImageDraw, place: tuple[int, int], example: Example, row: Any) -> None:
    right = row.verdict == row.is_anomalous
    told = f"{'defective' if row.verdict else 'good'}, {'right' if right else 'WRONG'} ({row.verdict_from})"
    name = f"{example.photo}   score {row.score:.3f}, threshold {row.threshold:.3f}"
    x, y = place
    draw.text((x, y), _fitted(draw, name, SMALL_SIZE), fill=INK, font=_font(SMALL_SIZE))
    draw.text((x, y + LINE), f"told: {told}", fill=GOOD if right else BAD, font=_font(SMALL_SIZE))
    if row.answer:
        answer = _fitted(draw, " ".join(row.answer.split()), SMALL_SIZE)
        draw.text((x, y + 2 * LINE), answer, fill=INK, font=_font(SMALL_SIZE, chinese=not row.answer.isascii()))


def _fitted(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """The text, cut where it is wider than a strip."""
    font = _font(size, chinese=not text.isascii())
    if draw.textlength(text, font=font) <= WIDTH:
        return text
    while text and draw.textlength(f"{text}…", font=font) > WIDTH:
        text = text[:-1]
    return f"{text}…"


def _font(size: int, bold: bool = False, chinese: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's own font, which is everywhere; for Chinese one of the system's, where there is one."""
    import matplotlib

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    for name in (*CHINESE_FONTS,) if chinese else ():
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.truetype(str(own), size)


def _write_curves(path: Path, results: Sequence[CategoryResult], title: str) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.2 + 0.22 * (len(results) // 5)), layout="constrained")
    panels = (
        ("roc", "image_auroc", "ROC of photos", "recall", 1.0),
        ("pixel_roc", "pixel_auroc", "ROC of pixels", "recall of pixels", 1.0),
        ("pro", "aupro", f"overlap with regions, up to {PRO_LIMIT:.0%}", "mean share of a region found", PRO_LIMIT),
    )
    for axes, (key, metric, name, ylabel, limit) in zip(figure.subplots(1, 3), panels, strict=True):
        _panel(axes, results, key, metric)
        axes.set(title=name, xlabel="false-positive rate", ylabel=ylabel, xlim=(0, limit), ylim=(0, 1.01))
        axes.grid(alpha=0.25)
    figure.suptitle(f"{title}; areas in %")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def _panel(axes: Any, results: Sequence[CategoryResult], key: str, metric: str) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, result in enumerate(results):
        curve, area = result.curves.get(key), result.metrics[metric]
        if curve is None or area is None:
            continue
        label = f"{result.cell.class_name} {100 * area:.1f}"
        colour = colours[(2 * number + number // 10) % 20]
        axes.plot(curve.x, curve.y, label=label, color=colour, linewidth=1.4, solid_joinstyle="round")
    if axes.lines:
        axes.legend(fontsize=8, loc="lower right", ncols=1 if len(results) <= 16 else 2)
    else:
        axes.text(0.5, 0.5, "not defined", ha="center", va="center", transform=axes.transAxes, color="grey")
