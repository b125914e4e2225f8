"""The original's name for ``train.py --config train_visa``; takes its flags."""

import runpy
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    sys.argv[1:] = ["--config", "train_visa", *(sys.argv[1:] if argv is None else argv)]
    runpy.run_module("anomalygpt.train", run_name="__main__")


if __name__ == "__main__":
    main()
