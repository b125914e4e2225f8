"""Photos of one part that judge each other, beside one good reference: detection, location, verdicts.

    python benchmarks/unlabelled.py data/mvtec_layout --defective 0.1 0.3

All test photos of a part judge each other, then a part of them: as many of the defective ones as ``--defective`` says.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).resolve().parent))

from verdict import NOTHING_KNOWN, remembering  # adds code/ to the path

from anomalygpt.config.load import load_config, resolve
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import user_errors
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.results import ImageResult

SIDE = 224  # of the maps and masks that are compared
ROUNDS = 3  # single references, and draws of defective photos


def auroc(scores: NDArray[np.float64], is_bad: NDArray[np.bool_]) -> float:
    """In percent."""
    bad = int(is_bad.sum())
    ranks = rankdata(scores)[is_bad].sum() - bad * (bad + 1) / 2
    return 100 * float(ranks) / (bad * (len(scores) - bad))


def mask_of(record: ImageRecord) -> NDArray[np.bool_]:
    """What is defective, none of it on a good photo."""
    if not record.masks:
        return np.zeros((SIDE, SIDE), dtype=bool)
    return np.asarray(load_mask(record).resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0


def measures(found: list[ImageResult], is_bad: NDArray[np.bool_], masks: NDArray[np.bool_]) -> list[float]:
    """Image- and pixel-AUROC in percent."""
    maps = torch.cat([each.model_map for each in found]).numpy()
    return [auroc(np.array([each.score for each in found]), is_bad), auroc(maps.ravel(), masks.ravel())]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Photos without a label that judge each other.")
    parser.add_argument("tree", help="a tree in MVTec-AD's layout")
    parser.add_argument("--config", default="compact")
    parser.add_argument("--parts", nargs="+", help="by default all")
    parser.add_argument("--defective", type=float, nargs="+", default=[0.1, 0.3])
    arguments = parser.parse_args()
    with user_errors():
        settings = [*NOTHING_KNOWN, "inference.references.text_weight=0", "inference.references.text_trusted_below=1"]
        predictor = Predictor.from_config(load_config(arguments.config, settings), "cpu", with_llm=False)
        records, encode = index_tree(resolve(arguments.tree)), predictor.model.encode
        verdicts = " | ".join(f"{100 * share:.0f} %: right / false alarms / found" for share in arguments.defective)
        print(f"| | photos | 1 reference: image | pixel | each other: image | pixel | {verdicts} |")
        print("|---|" + "--:|" * (5 + len(arguments.defective)))
        for part in arguments.parts or sorted({record.class_name for record in records}):
            predictor.model.encode = remembering(encode)  # type: ignore[method-assign]
            tests = [one for one in records if one.class_name == part and one.split == "test"]
            good = sorted(one.image for one in records if one.class_name == part and one.split == "train")
            photos, is_bad = [load_image(one.image) for one in tests], np.array([one.is_anomalous for one in tests])
            masks, alone = np.stack([mask_of(one) for one in tests]), []
            for index in np.linspace(0, len(good) - 1, ROUNDS):
                predictor.set_references([load_image(good[round(index)])])
                alone.append(measures([predictor.inspect(photo) for photo in photos], is_bad, masks))
            predictor.set_unlabelled(photos)
            numbers = [
                *np.mean(alone, axis=0),
                *measures([predictor.inspect(photo) for photo in photos], is_bad, masks),
            ]
            cells, rng = [f"{number:.1f}" for number in numbers], np.random.default_rng(0)
            for share in arguments.defective:
                rows, goods = [], np.flatnonzero(~is_bad)
                for _ in range(ROUNDS):
                    bad = rng.permutation(np.flatnonzero(is_bad))[: round(len(goods) * share / (1 - share))]
                    some = [*goods, *bad]
                    predictor.set_unlabelled([photos[index] for index in some])
                    above = np.array([predictor.inspect(photos[index]).is_anomalous for index in some])
                    rows.append(
                        [(above == is_bad[some]).mean(), above[: len(goods)].mean(), above[len(goods) :].mean()]
                    )
                cells.append(" / ".join(f"{100 * value:.0f}" for value in np.mean(rows, axis=0)))
            print(f"| {part} | {len(photos)} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
