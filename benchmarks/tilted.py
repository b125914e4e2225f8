"""What straightening gains on a long part that lies straight in its photos, once each photo is turned by any angle.

    python benchmarks/tilted.py data/mvtec_layout/toothbrush

The turned photo is made smaller, so that the part stays in it, and continued at its border. Preset ``fast`` of
``compact`` without the text map, with the prior that ships (this part's own photos, as they lie, are in its fit).
"""

import argparse
import random
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from anomalygpt import AnomalyGPT
from anomalygpt.datasets.photos import load_image
from anomalygpt.errors import user_errors

SMALLER = 0.72  # about 1 / sqrt(2)
SETTINGS = ("auto", "rotations")  # ``auto`` straightens


def turned(path: Path) -> Image.Image:
    """The photo at an angle that its name and folder decide."""
    pixels = np.asarray(load_image(path))
    height, width = pixels.shape[:2]
    side, angle = max(height, width), random.Random(f"{path.parent.name}/{path.name}").uniform(0, 360)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, SMALLER)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    return Image.fromarray(cv2.warpAffine(pixels, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", type=Path, help="a part's folder in MVTec AD's layout")
    parser.add_argument("--references", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="draws of references")
    arguments = parser.parse_args()
    photos = [(turned(path), path.parent.name != "good") for path in sorted((arguments.part / "test").glob("*/*"))]
    train = sorted((arguments.part / "train" / "good").iterdir())
    is_bad = np.array([bad for _, bad in photos])
    print("| augmentation | references | image-AUROC | right | false alarms |\n|---|--:|--:|--:|--:|")
    for setting in SETTINGS:
        chosen = [f"inference.references.augmentation={setting}", "inference.references.text_weight=0"]
        model = AnomalyGPT.from_pretrained("compact", chat=False, settings=chosen)
        for count in arguments.references:
            rows = []
            for number in range(arguments.rounds):
                drawn = random.Random(f"{count} {number}").sample(train, count)
                model.teach([turned(path) for path in drawn])
                results = [model.inspect(photo) for photo, _ in photos]
                called = np.array([result.is_anomalous for result in results])
                auroc = roc_auc_score(is_bad, [result.score for result in results])
                rows.append((auroc, np.mean(called == is_bad), called[~is_bad].mean()))
            means = " | ".join(f"{100 * value:.1f}" for value in np.mean(rows, axis=0))
            print(f"| {setting} | {count} | {means} |", flush=True)


if __name__ == "__main__":
    with user_errors():
        main()
