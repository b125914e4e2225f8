"""Writes docs/architecture.svg, the paper's figure 2 redrawn: ``python docs/make_architecture.py``.

Boxes and arrows are placed by hand, in the picture's own pixels. Boxes have light fills with dark words, and everything
outside them is a grey with enough contrast on white and on black, so the picture works on light and dark pages.
"""

from html import escape
from pathlib import Path

TARGET = Path(__file__).with_name("architecture.svg")
WIDTH, HEIGHT = 900, 580

INK, GREY = "#1f2328", "#768390"
STYLES = {  # kind: (fill, border, meaning in the legend)
    "input": ("#eef1f4", "#8c959f", "input, output"),
    "frozen": ("#cfe6ff", "#4393e0", "frozen"),
    "trained": ("#ffdfb8", "#d98324", "trained"),
    "pandagpt": ("#e6dafb", "#9672d8", "from PandaGPT, frozen"),
    "computed": ("#d3f0d9", "#4aa564", "no weights of its own"),
}
TITLE = "The architecture of AnomalyGPT"
DESCRIPTION = (
    "A frozen encoder turns a photo into patch features and an embedding. The image decoder compares the patches with "
    "the features of the text ensemble, or a memory bank compares them with those of reference photos: the anomaly "
    "map. The prompt learner turns the map into prompts, a projection turns the embedding into one token, and "
    "the language model with LoRA reads both and the question, and answers."
)


def text(
    x: float, y: float, words: str, size: int = 12, color: str = INK, anchor: str = "middle", weight: int = 400
) -> str:
    """One line of words; (x, y) is on its base line."""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{color}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def box(kind: str, x: float, y: float, width: float, height: float, name: str, *details: str) -> str:
    """A rounded box: its name in bold, and smaller lines below it."""
    fill, border, _ = STYLES[kind]
    middle, base = x + width / 2, y + height / 2 - 8 * len(details) + 5
    lines = [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{border}" '
        'stroke-width="1.5"/>',
        text(middle, base, name, size=13, weight=700),
    ]
    return "\n".join(lines + [text(middle, base + 16 * number, line) for number, line in enumerate(details, 1)])


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with a head at the last one."""
    path = " L ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path d="M {path}" fill="none" stroke="{GREY}" stroke-width="2" marker-end="url(#head)"/>'


def note(x: float, y: float, words: str, anchor: str = "start") -> str:
    """Small words beside an arrow."""
    return text(x, y, words, color=GREY, anchor=anchor)


def vision() -> list[str]:
    """The upper part: photos -> features -> anomaly map."""
    return [
        box("input", 10, 20, 120, 60, "References", "normal photos"),
        box("input", 10, 136, 120, 60, "Photo", "224 x 224"),
        box("frozen", 174, 20, 130, 176, "Image encoder", "ImageBind-Huge", "or DINOv2 ViT-S/14"),
        box("computed", 406, 20, 140, 64, "Memory bank", "distance to the", "nearest patch"),
        box("trained", 406, 132, 140, 64, "Image decoder", "one linear layer", "per tapped block"),
        box("computed", 634, 76, 114, 64, "Anomaly map", "224 x 224"),
        box("input", 790, 64, 102, 88, "Heat map,", "score and", "regions on the", "photo's pixels"),
        box("input", 318, 268, 58, 44, "Class", "name"),
        box("frozen", 406, 248, 140, 84, "Text ensemble", "14 normal and 10", "abnormal sentences", "(or 2 learned)"),
        arrow((130, 50), (172, 50)),
        arrow((130, 166), (172, 166)),
        arrow((304, 40), (404, 40)),
        note(355, 32, "patches", "middle"),
        arrow((304, 164), (404, 164)),
        arrow((355, 164), (355, 66), (404, 66)),
        note(348, 156, "4 taps", "end"),
        arrow((376, 290), (404, 290)),
        arrow((476, 248), (476, 198)),
        note(484, 227, "normal, abnormal"),
        arrow((546, 52), (590, 52), (590, 96), (632, 96)),
        note(597, 46, "with references"),
        arrow((546, 164), (590, 164), (590, 120), (632, 120)),
        note(597, 180, "without"),
        arrow((748, 108), (788, 108)),
    ]


def language() -> list[str]:
    """The lower part: features, map and question -> answer."""
    top, height = 382, 42
    return [
        box("pandagpt", 179, 254, 120, 70, "Projection", "one linear layer,", "one token"),
        box("trained", 618, 254, 130, 70, "Prompt learner", "6 convolutions,", "9 base prompts"),
        box("input", 790, 254, 102, 70, "Question", "and the chat", "before it"),
        arrow((239, 196), (239, 252)),
        note(247, 228, "embedding"),
        arrow((691, 140), (691, 252)),
        arrow((239, 324), (239, 380)),
        arrow((691, 324), (691, 380)),
        arrow((618, 308), (582, 308), (582, 350), (474, 350), (474, 380)),
        arrow((841, 324), (841, 380)),
        f'<rect x="4" y="{top - 6}" width="892" height="{height + 12}" rx="9" fill="none" stroke="{GREY}"/>',
        box("computed", 10, top, 48, height, "BOS"),
        box("computed", 62, top, 134, height, "### Human:", "<Img>"),
        box("pandagpt", 200, top, 84, height, "image", "1 token"),
        box("computed", 288, top, 70, height, "</Img>"),
        box("trained", 362, top, 192, height, "9 base prompts", "learned"),
        box("trained", 558, top, 190, height, "9 prompts", "computed from the map"),
        box("input", 752, top, 140, height, "question", "### Assistant:"),
        arrow((239, 430), (239, 458)),
        note(249, 449, "embeddings, in this order"),
        box("frozen", 10, 460, 640, 60, "Language model", "Vicuna-7B, Vicuna-13B or SmolLM2-135M"),
        box("pandagpt", 518, 468, 124, 44, "LoRA", "on q, k, v and o"),
        box("input", 700, 454, 192, 72, "Answer", "“Yes, there is an anomaly,", "at the top left.”"),
        arrow((650, 490), (698, 490)),
    ]


def legend() -> list[str]:
    """What the colours mean."""
    parts, x = [], 10.0
    for fill, border, meaning in STYLES.values():
        parts.append(f'<rect x="{x:g}" y="550" width="16" height="16" rx="4" fill="{fill}" stroke="{border}"/>')
        parts.append(note(x + 23, 562, meaning))
        x += 23 + 7.5 * len(meaning) + 28
    return parts


def svg() -> str:
    """The whole picture."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif">'
    )
    marker = (
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="7" refY="4" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path d="M 0 0 L 9 4 L 0 8 z" fill="{GREY}"/></marker></defs>'
    )
    about = f"<title>{escape(TITLE)}</title>\n<desc>{escape(DESCRIPTION)}</desc>"
    return "\n".join([head, about, marker, *vision(), *language(), *legend(), "</svg>"]) + "\n"


def main() -> None:
    TARGET.write_text(svg(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
