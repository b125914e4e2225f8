"""Divides a tree's test photos into two halves: one to choose settings on, the other for the numbers that count.

    python benchmarks/halves.py data/mvtec_layout runs/halves

writes ``validation.csv`` and ``held_out.csv`` (``run_eval.py --kind csv --data …``). Of each class and defect, sorted
by path, the first, third, … photo is for validation; both tables list all training photos, so that references are the
same.
"""

import argparse
import csv
import os
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from anomalygpt.config.load import resolve
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.tree import index_tree
from anomalygpt.errors import user_errors
from anomalygpt.files import replacing

HEADER = ("path", "split", "label", "mask", "class", "defect")
HALVES = ("validation", "held_out")


def halves(records: list[ImageRecord]) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The test photos for validation, and the others."""
    groups: defaultdict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.image):
        if record.split == "test":
            groups[record.class_name, record.defect].append(record)
    first = [record for group in groups.values() for record in group[::2]]
    return first, [record for group in groups.values() for record in group[1::2]]


def write_table(path: Path, records: list[ImageRecord]) -> None:
    """Writes the records as a CSV table whose paths start at its folder."""

    def below(file: Path | None) -> str:
        return os.path.relpath(file.resolve(), path.parent.resolve()) if file else ""

    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for record in records:
            label = "anomaly" if record.is_anomalous else "normal"
            mask = below(record.masks[0]) if record.masks else ""
            writer.writerow([below(record.image), record.split, label, mask, record.class_name, record.defect])


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Divide a tree's test photos into two halves.")
    parser.add_argument("tree", help="in MVTec-AD's layout")
    parser.add_argument("out", type=Path, help="folder for the two tables")
    arguments = parser.parse_args()
    with user_errors():
        records = index_tree(resolve(arguments.tree))
        trained = [record for record in records if record.split == "train"]
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, half in zip(HALVES, halves(records), strict=True):
            write_table(arguments.out / f"{name}.csv", trained + half)
            print(f"{arguments.out / name}.csv: {len(half)} test photos")
    return 0


if __name__ == "__main__":
    sys.exit(main())
