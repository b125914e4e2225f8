"""How cost grows: ``python benchmarks/speed_scaling.py memory``, or ``folders``; each size in a process of its own.

``memory``: the search for the nearest of 10^3 to 10^6 reference patches, as a share of the rate of the matrix product.
``folders``: what 10^2 to 10^5 photos cost beside the encoder: listing, naming, results, tables and report.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "code"))

SIZES = {"memory": (10**3, 10**4, 10**5, 10**6), "folders": (10**2, 10**3, 10**4, 10**5)}
PATCHES, WIDTH, TAPS = 256, 384, 4  # of a photo of 224 px by DINOv2-S


def median(action: Callable[[], Any], repeats: int = 5) -> float:
    """The median duration of an action in seconds, after one run that does not count."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def memory(size: int) -> dict[str, float]:
    """One photo's search in so many patches."""
    import torch

    from anomalygpt.model.encoder import ImageFeatures
    from anomalygpt.model.memory_bank import MemoryBank

    def features(count: int) -> ImageFeatures:
        return ImageFeatures(tuple(torch.randn(count, PATCHES, WIDTH) for _ in range(TAPS)), torch.zeros(count, WIDTH))

    photos = -(-size // PATCHES)
    bank = MemoryBank([features(1)] * photos)
    query, one, other = features(1), torch.randn(1024, 1536), torch.randn(1536, 1536)
    rate = 2 * 1024 * 1536**2 / median(lambda: one @ other, 20) / 1e9
    seconds = median(lambda: bank.similarity(query), 3)
    reached = 2 * PATCHES * len(bank) * WIDTH * TAPS / seconds / 1e9
    stored = sum(tap.nbytes for tap in bank.taps) / 2**20
    return {"ms": 1e3 * seconds, "GFLOP/s": reached, "% of the matrix product": 100 * reached / rate, "MiB": stored}


def folders(size: int) -> dict[str, float]:
    """So many photos of one folder, of which each has a line of results."""
    from anomalygpt.datasets.records import find_photos
    from anomalygpt.inference.outputs import Outputs, output_stem

    numbers = {"is_anomalous": True, "probability": 0.9, "score": 0.3, "threshold": 0.2, "score_threshold": 0.2}
    result = numbers | {"reason": "", "regions": [{"area": 0.1}], "places": ["top left"], "number": 1}
    result |= {"total_area": 0.1, "answer": "", "answer_agrees": True, "status": "defective", "overlay": "x.png"}
    found: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = action()
        found[f"{name}, s"] = time.perf_counter() - start
        return value

    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name) / "photos", Path(name) / "out"
        for number in range(size):
            path = root / f"{number % 10}" / f"{number // 10:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        photos = timed("list", lambda: find_photos(root, recursive=True))
        taken = Counter[str]()
        timed("names", lambda: [output_stem(path, taken) for path in photos])
        same = Counter[str]()
        timed("equal names", lambda: [output_stem(Path("a/b/c.png"), same) for _ in photos])
        outputs = Outputs(out)
        timed("results.jsonl", lambda: [outputs.add({"photo": str(path), **result}) for path in photos])
        timed("table and report", lambda: outputs.finish({}, "en"))
        found["report.html, MiB"] = (out / "report.html").stat().st_size / 2**20
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SIZES)
    parser.add_argument("--size", type=int, help="only this one, here, as JSON")
    parser.add_argument("--most", type=int, default=10**6, help="no size above it")
    arguments = parser.parse_args(argv)
    if arguments.size:
        found = {"memory": memory, "folders": folders}[arguments.what](arguments.size)
        print(json.dumps(found | {"peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    for number, size in enumerate(size for size in SIZES[arguments.what] if size <= arguments.most):
        command = [sys.executable, __file__, arguments.what, "--size", str(size)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if not number:
            print(f"| {arguments.what} | " + " | ".join(found) + " |\n|--:|" + "--:|" * len(found))
        print(f"| {size:,} | " + " | ".join(f"{value:,.2f}" for value in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
