"""How right verdicts are on parts that the calibration has not seen, and the numbers that ``PartsPrior`` is made of.

    python benchmarks/verdict.py data/mvtec_layout --out runs/verdict.json
    python benchmarks/verdict.py runs/verdict.json  # the tables again, without encoding a photo
    python benchmarks/verdict.py data/mvtec_layout --shots 2 4 8 --consecutive --prior runs/verdict.json

For each part of a tree in MVTec-AD's layout, references are drawn from the good training photos, and all test photos
are scored without the text map, as of a part that nobody trained on. The calibration of each part is then fitted on all
other parts. ``--consecutive`` takes references that follow each other by name, as the paper does, and ``--prior FILE``
fits on other runs' scores. ``--known-parts FILE`` writes the class tokens that ``inference.known_parts`` reads,
instead.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from anomalygpt.config.load import load_config, resolve
from anomalygpt.config.settings import PartsPrior
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import user_errors
from anomalygpt.inference.anomaly_map import image_scores
from anomalygpt.inference.calibration import LOWEST, calibrate, foreign_ones, odd_ones
from anomalygpt.inference.predictor import Predictor
from anomalygpt.model.checkpoint import save_tensors
from anomalygpt.model.encoder import ImageFeatures

Cell = dict[str, Any]  # one draw of references of one part
Verdicts = dict[int, list[tuple[str, NDArray[np.float64], NDArray[np.bool_]]]]  # shots: part, probabilities, defective

POOL, KNOWN = 16, 40  # good training photos of a part that references are drawn from at least, and that make it known
NOTHING_KNOWN = ["inference.known_parts=null"]  # the file may not exist yet
COVERED = {1: 0.75, 2: 0.75, 4: 0.8, 8: 0.8, 16: 0.8}  # shots: share of photos that get a verdict if it must be sure
RIDGE = 0.002  # added to the variance of the held-out centres, so that few parts do not decide their weight
MEAN_TO_SD = math.sqrt(math.pi / 2)  # of a normal distribution: its mean absolute deviation is that much smaller


def collect(
    tree: Path, config: str, shots: Sequence[int], rounds: int, photos_each: int, consecutive: bool = False
) -> dict[str, Any]:
    """Scores of held-out, good and defective photos and distances of class tokens, of each part, number and round."""
    settings = [*NOTHING_KNOWN, "inference.references.text_weight=0", "inference.references.text_trusted_below=1"]
    predictor = Predictor.from_config(load_config(config, settings), "cpu", with_llm=False)
    encode, records = predictor.model.encode, some(index_tree(tree), photos_each)
    parts = sorted({record.class_name for record in records})
    tokens = {part: _tokens(predictor, records, part) for part in parts}
    cells: list[Cell] = []
    for part in parts:
        predictor.model.encode = remembering(encode)  # type: ignore[method-assign]
        tests = [one for one in records if one.split == "test" and one.class_name == part]
        pool = _pool(records, part, max(shots) * rounds if consecutive else None, max(POOL, 2 * max(shots)))
        photos = [load_image(one.image) for one in tests]
        bad = [photo for photo, one in zip(photos, tests, strict=True) if one.is_anomalous]
        rng = np.random.default_rng(sum(map(ord, part)))
        for count in shots:
            for each in range(rounds):
                random = sorted(rng.choice(len(pool), count, replace=False))
                drawn = [pool[index] for index in (range(count * each, count * (each + 1)) if consecutive else random)]
                predictor.set_references(drawn)
                cell = {"part": part, "shots": count, **judged_references(predictor)}
                scores = [_score(predictor, photo) for photo in photos]
                cell["good"] = [score for score, one in zip(scores, tests, strict=True) if not one.is_anomalous]
                cell["defective"] = [score for score, one in zip(scores, tests, strict=True) if one.is_anomalous]
                known = predictor.references.embeddings.float()  # type: ignore[union-attr]
                cell["identity"] = {
                    name: (1 - (token["test"] @ known.T).amax(1)).tolist() for name, token in tokens.items()
                }
                if count >= 3:  # one of them is replaced by a defective photo
                    predictor.set_references([bad[int(rng.integers(len(bad)))], *drawn[1:]])
                    cell["spoilt"] = judged_references(predictor)
                cells.append(cell)
        print(part, file=sys.stderr, flush=True)
    unknown = {
        part: {
            "left_out": _nearest(tokens[part]["test"], [tokens[other]["known"] for other in parts if other != part]),
            "known": _nearest(tokens[part]["test"], [tokens[other]["known"] for other in parts]),
        }
        for part in parts
    }
    return {"config": config, "cells": cells, "unknown": unknown}


def some(records: Sequence[ImageRecord], photos_each: int) -> list[ImageRecord]:
    """All training photos, and of each part so many good and so many defective test photos, evenly spaced by name."""
    chosen = [record for record in records if record.split == "train"]
    groups: dict[tuple[str, bool], list[ImageRecord]] = {}
    for record in sorted(records, key=lambda record: record.image):
        if record.split == "test":
            groups.setdefault((record.class_name, record.is_anomalous), []).append(record)
    for group in groups.values():
        indices = np.linspace(0, len(group) - 1, min(len(group), photos_each))
        chosen += [group[round(index)] for index in indices]
    return chosen


def remembering(encode: Callable[[torch.Tensor], ImageFeatures]) -> Callable[[torch.Tensor], ImageFeatures]:
    """An encoder that encodes no image twice."""
    known: dict[bytes, ImageFeatures] = {}

    def look_up(images: torch.Tensor) -> ImageFeatures:
        keys = [image.numpy().tobytes() for image in images.cpu()]
        new = [index for index, key in enumerate(keys) if key not in known]
        if new:
            encoded = encode(images[new])
            known.update({keys[index]: encoded[[place]] for place, index in enumerate(new)})
        found = [known[key] for key in keys]
        taps = zip(*(each.taps for each in found), strict=True)
        return ImageFeatures(tuple(map(torch.cat, taps)), torch.cat([each.embedding for each in found]))

    return look_up


def judged_references(predictor: Predictor) -> Cell:
    """Held-out scores of the references, and the cosine distances between their class tokens."""
    references = predictor.references
    assert references is not None
    own = references.embeddings[: len(references)].float()
    scores = image_scores(references.held_out_maps(), references.settings).tolist()
    return {"held_out": scores, "distances": (1 - own @ own.T).tolist()}


def _score(predictor: Predictor, photo: Image.Image) -> float:
    return predictor.inspect(photo).score


def _pool(records: Sequence[ImageRecord], part: str, first: int | None = None, count: int = POOL) -> list[Image.Image]:
    """Good training photos of a part: the ``first`` ones by name, or ``count`` of them, evenly spaced."""
    trained = sorted(one.image for one in records if one.split == "train" and one.class_name == part)
    spaced = np.linspace(0, len(trained) - 1, count)
    return [load_image(path) for path in (trained[:first] if first else [trained[round(index)] for index in spaced])]


def _tokens(predictor: Predictor, records: Sequence[ImageRecord], part: str) -> dict[str, torch.Tensor]:
    """Unit class tokens of a part's good training photos and of its test photos."""
    tests = [load_image(one.image) for one in records if one.split == "test" and one.class_name == part]
    with torch.inference_mode():
        return {
            name: torch.cat([predictor.model.encode(predictor.transform(photo)[None]).embedding for photo in photos])
            for name, photos in (("known", _pool(records, part, count=KNOWN)), ("test", tests))
        }


def _nearest(tokens: torch.Tensor, known: Sequence[torch.Tensor]) -> list[float]:
    return list((1 - (tokens @ torch.cat(list(known)).T).amax(1)).tolist())


def logs(scores: Sequence[float]) -> NDArray[np.float64]:
    """Logarithms of image scores, as the calibration takes them."""
    return np.log(np.maximum(scores, LOWEST**2))


def fit(cells: Sequence[Cell]) -> PartsPrior:
    """What the scores of good photos of these parts say of another part."""
    columns: dict[str, list[float]] = {name: [] for name in ("centre", "held_out", "weight", "error")}
    counts = sorted({cell["shots"] for cell in cells})
    for count in counts:
        some = [cell for cell in cells if cell["shots"] == count]
        held_out, centre = (np.array([logs(cell[name]).mean() for cell in some]) for name in ("held_out", "good"))
        apart, moved = held_out - held_out.mean(), centre - centre.mean()
        weight = (apart * moved).mean() / (held_out.var() + RIDGE)
        error = MEAN_TO_SD * np.abs(moved - weight * apart).mean()  # one part that differs much does not decide it
        for name, value in zip(columns, (centre.mean(), held_out.mean(), weight, error), strict=True):
            columns[name].append(round(float(value), 3))
    spread = round(float(np.sqrt(np.mean([logs(cell["good"]).var(ddof=1) for cell in cells]))), 3)
    return PartsPrior.model_validate({"references": counts, **columns, "spread": spread})


def read_cells(files: Sequence[Path]) -> list[Cell]:
    """The cells of several runs, in their order."""
    return [cell for file in files for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]]


def left_out(cells: Sequence[Cell], rate: float, fitted_on: Sequence[Cell]) -> Verdicts:
    """Probabilities of all test photos, each part calibrated by the other parts of ``fitted_on``, if there are any."""
    parts = sorted({cell["part"] for cell in cells})
    others = {part: [cell for cell in fitted_on if cell["part"] != part] for part in parts}
    priors = {part: fit(others[part]) if others[part] else None for part in parts}
    found: Verdicts = {}
    for cell in cells:
        held_out = torch.tensor(cell["held_out"])[:, None, None, None]
        calibration = calibrate(cell["held_out"], held_out, rate, references=cell["shots"], parts=priors[cell["part"]])
        scores = [*cell["good"], *cell["defective"]]
        probabilities = np.array([calibration.probability(score) for score in scores])
        found.setdefault(cell["shots"], []).append((cell["part"], probabilities, defective(cell)))
    return found


def defective(cell: Cell) -> NDArray[np.bool_]:
    """Labels of a cell's good and defective photos, in this order."""
    return np.repeat([False, True], [len(cell["good"]), len(cell["defective"])])


def constant(cells: Sequence[Cell]) -> float:
    """Right verdicts, 0..1, by one threshold for all parts, which is best on the other parts."""
    parts = sorted({cell["part"] for cell in cells})
    steps = np.linspace(-3, 1, 401)
    right = {
        part: np.mean(
            [
                ((logs([*cell["good"], *cell["defective"]]) > steps[:, None]) == defective(cell)).mean(1)
                for cell in cells
                if cell["part"] == part
            ],
            axis=0,
        )
        for part in parts
    }
    best = {part: np.argmax(np.mean([right[other] for other in parts if other != part], axis=0)) for part in parts}
    return float(np.mean([right[part][best[part]] for part in parts]))


def by_part(
    verdicts: Sequence[tuple[str, NDArray[np.float64], NDArray[np.bool_]]],
    measure: Callable[[NDArray[np.float64], NDArray[np.bool_]], float],
) -> dict[str, float]:
    """Part -> mean of a measure over its draws of references, in percent."""
    parts = sorted({part for part, _, _ in verdicts})
    return {part: 100 * float(np.mean([measure(p, y) for name, p, y in verdicts if name == part])) for part in parts}


def right(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Share of right verdicts."""
    return float(((p > 0.5) == y).mean())


def hindsight(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Share of right verdicts by the best threshold of these very photos."""
    return max(float(((p > threshold) == y).mean()) for threshold in [-1.0, *p])


def auroc(p: NDArray[np.float64], y: NDArray[np.bool_]) -> float:
    """Image-AUROC: how often a defective photo is above a good one."""
    good, bad = p[~y], p[y]
    return float(((bad[:, None] > good).mean() + (bad[:, None] >= good).mean()) / 2)


def joined(verdicts: Verdicts, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Probabilities, labels and weights of all photos: each part weighs alike."""
    some = verdicts[count]
    weights = np.concatenate([np.full(len(p), 1 / len(p)) for _, p, _ in some])
    return np.concatenate([p for _, p, _ in some]), np.concatenate([y for *_, y in some]), weights / weights.sum()


def reliability(p: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64]) -> list[list[float]]:
    """Of ten bins of the probability: its mean, the share of defective photos, and the share of all photos."""
    bins, rows = np.minimum((10 * p).astype(int), 9), []
    for each in range(10):
        of = bins == each
        share = float(weights[of].sum())
        rows.append([*(float(np.average(x[of], weights=weights[of])) if share else 0.0 for x in (p, y)), share])
    return rows


def where_sure(p: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64], share: float) -> str:
    """Right verdicts among the ``share`` of photos whose probability is farthest from one half."""
    order = np.argsort(-np.abs(p - 0.5))
    last = int(np.searchsorted(np.cumsum(weights[order]), share))
    sure = order[: last + 1]
    hits = np.average((p[sure] > 0.5) == y[sure], weights=weights[sure])
    return f"{100 * hits:.1f} of {100 * share:.0f} % (undecided {abs(p[order[last]] - 0.5):.2f})"


def tables(cells: Sequence[Cell], rate: float, fitted_on: Sequence[Cell]) -> str:
    """All numbers about verdicts, as Markdown."""
    verdicts, alone = left_out(cells, rate, fitted_on), left_out(cells, rate, ())
    counts = sorted(verdicts)
    rows: dict[str, list[str]] = {}

    def add(title: str, value: Callable[[int], str]) -> None:
        rows[title] = [value(count) for count in counts]

    def mean(measure: Callable[..., float], of: Verdicts = verdicts) -> Callable[[int], str]:
        return lambda count: f"{np.mean(list(by_part(of[count], measure).values())):.1f}"

    def worst(count: int) -> str:
        shares = by_part(verdicts[count], right)
        part = min(shares, key=lambda name: shares[name])
        return f"{shares[part]:.0f} ({part})"

    def error(count: int) -> str:
        return f"{100 * sum(share * abs(p - y) for p, y, share in reliability(*joined(verdicts, count))):.1f}"

    def brier(count: int) -> str:
        p, y, weights = joined(verdicts, count)
        return f"{100 * np.average((p - y) ** 2, weights=weights):.1f}"

    add("verdicts right", mean(right))
    add("defects found", mean(lambda p, y: float((p[y] > 0.5).mean())))
    add("good photos called defective", mean(lambda p, y: float((p[~y] > 0.5).mean())))
    add("right by the references alone", mean(right, alone))
    add("right by one constant", lambda count: f"{100 * constant([c for c in cells if c['shots'] == count]):.1f}")
    add("right in hindsight", mean(hindsight))
    add("worst part", worst)
    add("image-AUROC", mean(auroc))
    add("calibration error (ECE)", error)
    add("Brier score", brier)
    add("right where sure", lambda count: where_sure(*joined(verdicts, count), COVERED[count]))
    text = _markdown("", counts, rows)
    parts = {
        part: [
            " / ".join(
                f"{by_part(verdicts[count], measure)[part]:.0f}"
                for measure in (right, lambda p, y: float((p[~y] > 0.5).mean()))
            )
            for count in counts
        ]
        for part in by_part(verdicts[counts[0]], right)
    }
    text += "\n" + _markdown("right / false alarms", counts, parts)
    plots = [reliability(*joined(verdicts, count)) for count in counts]
    bins = {
        f"0.{each}–{(each + 1) / 10:.1f}": [f"{100 * plot[each][1]:.0f} ({100 * plot[each][2]:.0f})" for plot in plots]
        for each in range(10)
    }
    return text + "\n" + _markdown("probability: defective, of all photos", counts, bins)


def identity_table(cells: Sequence[Cell], limit: float) -> str:
    """How often photos of the right part and of another one are called another part, as Markdown."""
    counts, rows = sorted({cell["shots"] for cell in cells}), {}
    for title, same in (("the right part", True), ("another part", False)):
        rows[f"photos of {title}"] = [
            _percent([d > limit for c in cells if c["shots"] == count for n, ds in c["identity"].items()
                      if (n == c["part"]) is same for d in ds])
            for count in counts
        ]  # fmt: skip
    pairs = []
    for count in counts:
        shares: dict[tuple[str, str], list[bool]] = {}
        for cell in cells:
            for name, distances in cell["identity"].items():
                if cell["shots"] == count and name != cell["part"]:
                    shares.setdefault((cell["part"], name), []).extend(d > limit for d in distances)
        pairs.append(_percent([np.mean(share) > 0.5 for share in shares.values()]))
    rows["pairs of parts, most photos of which"] = pairs
    return _markdown(f"called another part, above {limit}", counts, rows)


def unknown_table(unknown: dict[str, dict[str, list[float]]], limit: float) -> str:
    """How often photos get no verdict where there are no references, as Markdown."""
    lines = []
    for kind, title in (("left_out", "of a part that is not known"), ("known", "of a known part")):
        shares = {part: 100 * float(np.mean(np.array(each[kind]) > limit)) for part, each in unknown.items()}
        mean, one = np.mean(list(shares.values())), ", ".join(f"{part} {share:.0f}" for part, share in shares.items())
        lines.append(f"* without references, above {limit}, photos {title}: {mean:.1f} % ({one})")
    return "\n".join(lines) + "\n"


def reference_table(cells: Sequence[Cell], limit: float) -> str:
    """How often good references are accused, and a defective one is named, as Markdown."""
    counts = sorted({cell["shots"] for cell in cells if "spoilt" in cell})
    parts = sorted({cell["part"] for cell in cells})
    priors = {part: fit([cell for cell in cells if cell["part"] != part]) for part in parts}

    def named(cell: Cell, spoilt: bool = False) -> set[int]:
        judged, usual = cell["spoilt"] if spoilt else cell, priors[cell["part"]].at(cell["shots"])[1]
        foreign = foreign_ones(torch.tensor(judged["distances"]), limit)
        return {*foreign, *odd_ones(judged["held_out"], usual)}

    rows = {
        "good sets of which one is accused": [
            _percent([bool(named(c)) for c in cells if c["shots"] == count]) for count in counts
        ],
        "a defective one is named": [
            _percent([0 in named(c, True) for c in cells if c["shots"] == count]) for count in counts
        ],
        "only the defective one is named": [
            _percent([named(c, True) == {0} for c in cells if c["shots"] == count]) for count in counts
        ],
    }
    return _markdown("references", counts, rows)


def _percent(hits: Sequence[Any]) -> str:
    return f"{100 * float(np.mean(hits)):.1f} %"


def _markdown(title: str, counts: Sequence[int], rows: dict[str, list[str]]) -> str:
    head = [f"| {title} | " + " | ".join(f"{count}" for count in counts) + " |", "|---|" + "--:|" * len(counts)]
    return "\n".join([*head, *(f"| {name} | " + " | ".join(values) + " |" for name, values in rows.items())]) + "\n"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Verdicts on parts that the calibration has not seen.")
    parser.add_argument("source", help="a tree in MVTec-AD's layout, or the JSON file of an earlier run")
    parser.add_argument("--config", default="compact")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8], choices=list(COVERED))
    parser.add_argument("--rounds", type=int, default=5, help="draws of references of each part and number")
    parser.add_argument(
        "--photos", type=int, default=1000, help="at most so many good and so many defective test photos"
    )
    parser.add_argument("--rate", type=float, default=0.1, help="the false-alarm rate that is promised")
    parser.add_argument("--consecutive", action="store_true", help="references that follow each other by name")
    parser.add_argument("--prior", type=Path, nargs="+", help="JSON files of runs that the calibration is fitted on")
    parser.add_argument("--out", type=Path, help="where scores are written to, as JSON")
    parser.add_argument("--known-parts", type=Path, help="write class tokens of the tree's good training photos there")
    arguments = parser.parse_args()
    with user_errors():
        source = resolve(arguments.source)
        if arguments.known_parts:
            predictor = Predictor.from_config(load_config(arguments.config, NOTHING_KNOWN), "cpu", with_llm=False)
            records = index_tree(source)
            parts = sorted({one.class_name for one in records})
            tokens = torch.cat([_tokens(predictor, records, part)["known"] for part in parts])
            save_tensors({"embeddings": tokens.half()}, arguments.known_parts)
            return 0
        if source.is_file():
            found = json.loads(source.read_text(encoding="utf-8"))
        else:
            how = (arguments.config, arguments.shots, arguments.rounds, arguments.photos, arguments.consecutive)
            found = collect(source, *how)
        if arguments.out:
            arguments.out.write_text(json.dumps(found), encoding="utf-8")
        limits = load_config(found["config"]).inference
        fitted_on = read_cells(arguments.prior) if arguments.prior else found["cells"]
        print(tables(found["cells"], arguments.rate, fitted_on))
        if limits.other_part_above is not None:
            print(identity_table(found["cells"], limits.other_part_above))
            print(reference_table(found["cells"], limits.other_part_above))
            print(unknown_table(found["unknown"], limits.unknown_part_above))
        print(json.dumps(fit(fitted_on).model_dump()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
