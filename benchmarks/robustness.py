"""False alarms and found defects where the camera changes a little after the references were taken.

    python benchmarks/robustness.py data/mvtec_layout runs/verdict.json runs/consecutive.json --out runs/robustness.json
    python benchmarks/robustness.py runs/robustness.json runs/verdict.json runs/consecutive.json  # the table alone

All photos, references too, are cropped to their middle, so that a moved or turned photo has no border that is made up.
Each part is calibrated by the other parts' scores in the files that ``benchmarks/verdict.py`` wrote.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent))

from verdict import NOTHING_KNOWN, Cell, fit, read_cells, remembering, some  # adds code/ to the path

from anomalygpt.config.load import load_config, resolve
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import user_errors
from anomalygpt.inference.anomaly_map import image_scores
from anomalygpt.inference.calibration import calibrate
from anomalygpt.inference.predictor import Predictor

MARGIN = 0.06  # of the sides, cut off at each side
REFERENCES, POOL = 4, 8


def middle(photo: Image.Image, moved: float = 0.0) -> Image.Image:
    """The photo without its margins, or what the camera sees when it is moved by a share of the sides."""
    width, height = photo.size
    left, top = (round((MARGIN + moved) * side) for side in photo.size)
    return photo.crop((left, top, left + round((1 - 2 * MARGIN) * width), top + round((1 - 2 * MARGIN) * height)))


def noisy(photo: Image.Image) -> Image.Image:
    """With noise of five levels of 255."""
    pixels = np.asarray(photo, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 5, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def compressed(photo: Image.Image) -> Image.Image:
    """As a JPEG file of quality 30."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def blurred(photo: Image.Image) -> Image.Image:
    """By a Gaussian of 0.4 % of the longer side."""
    return photo.filter(ImageFilter.GaussianBlur(0.004 * max(photo.size)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": middle,
    "light - 20 %": lambda photo: ImageEnhance.Brightness(middle(photo)).enhance(0.8),
    "light + 20 %": lambda photo: ImageEnhance.Brightness(middle(photo)).enhance(1.2),
    "blur": lambda photo: middle(blurred(photo)),
    "noise": lambda photo: noisy(middle(photo)),
    "JPEG, quality 30": lambda photo: compressed(middle(photo)),
    "turned by 5 degrees": lambda photo: middle(photo.rotate(5, Image.Resampling.BICUBIC)),
    "moved by 1 %": lambda photo: middle(photo, 0.01),
    "moved by 3 %": lambda photo: middle(photo, 0.03),
    "moved by 6 %": lambda photo: middle(photo, 0.06),
}


def collect(tree: Path, config: str, rounds: int, photos_each: int, out: Path | None) -> list[Cell]:
    """Scores of held-out references and, by change, of good and of defective photos; written after each part."""
    settings = [*NOTHING_KNOWN, "inference.references.text_weight=0", "inference.references.text_trusted_below=1"]
    predictor = Predictor.from_config(load_config(config, settings), "cpu", with_llm=False)
    encode, records, cells = predictor.model.encode, some(index_tree(tree), photos_each), list[Cell]()
    for part in sorted({record.class_name for record in records}):
        predictor.model.encode = remembering(encode)  # type: ignore[method-assign]
        trained = sorted(one.image for one in records if one.split == "train" and one.class_name == part)
        pool = [trained[round(index)] for index in np.linspace(0, len(trained) - 1, POOL)]
        tests = [one for one in records if one.split == "test" and one.class_name == part]
        photos, rng = [load_image(one.image) for one in tests], np.random.default_rng(sum(map(ord, part)))
        for _ in range(rounds):
            drawn = sorted(rng.choice(POOL, REFERENCES, replace=False))
            predictor.set_references([middle(load_image(pool[index])) for index in drawn])
            references = predictor.references
            assert references is not None
            held_out = image_scores(references.held_out_maps(), references.settings)
            cell = {"part": part, "held_out": held_out.tolist(), "defective": [one.is_anomalous for one in tests]}
            cell["scores"] = {
                name: [predictor.inspect(change(photo)).score for photo in photos] for name, change in CHANGES.items()
            }
            cells.append(cell)
            if out:
                out.write_text(json.dumps(cells), encoding="utf-8")
        print(part, file=sys.stderr, flush=True)
    return cells


def table(cells: list[Cell], verdicts: list[Cell], rate: float) -> str:
    """False alarms, found defects and the part with most false alarms of each change, as Markdown."""
    rows = ["| change | good photos called defective | defects found | most false alarms |", "|---|--:|--:|---|"]
    parts = sorted({cell["part"] for cell in cells})
    priors = {part: fit([cell for cell in verdicts if cell["part"] != part]) for part in parts}
    for name in cells[0]["scores"]:
        shares: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
        for cell in cells:
            maps = torch.tensor(cell["held_out"])[:, None, None, None]
            prior = priors[cell["part"]]
            found = calibrate(cell["held_out"], maps, rate, references=REFERENCES, parts=prior)
            above, is_bad = np.array(cell["scores"][name]) > found.score_threshold, np.array(cell["defective"])
            shares[cell["part"]].append((above[~is_bad].mean(), above[is_bad].mean()))
        means = {part: 100 * np.mean(values, axis=0) for part, values in shares.items()}
        alarms, hits = np.mean(list(means.values()), axis=0)
        worst = max(means, key=lambda part: means[part][0])
        rows.append(f"| {name} | {alarms:.1f} % | {hits:.1f} % | {worst} {means[worst][0]:.0f} % |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Verdicts where the camera changes a little.")
    parser.add_argument("source", help="a tree in MVTec-AD's layout, or the JSON file of an earlier run")
    parser.add_argument("prior", type=Path, nargs="+", help="JSON files of benchmarks/verdict.py, with four references")
    parser.add_argument("--config", default="compact")
    parser.add_argument("--rounds", type=int, default=2, help="draws of four references of each part")
    parser.add_argument("--photos", type=int, default=6, help="at most so many good and so many defective photos")
    parser.add_argument("--rate", type=float, default=0.1, help="the false-alarm rate that is promised")
    parser.add_argument("--out", type=Path, help="where scores are written to, as JSON")
    arguments = parser.parse_args()
    with user_errors():
        source = resolve(arguments.source)
        if source.is_file():
            cells = json.loads(source.read_text(encoding="utf-8"))
        else:
            cells = collect(source, arguments.config, arguments.rounds, arguments.photos, arguments.out)
        print(table(cells, read_cells(arguments.prior), arguments.rate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
