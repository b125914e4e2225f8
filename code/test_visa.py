"""The original's name for ``run_eval.py --kind visa`` on the data set in its place."""

import runpy
import sys


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    data = ["--kind", "visa", "--data", "../data/VisA"]
    sys.argv[1:] = data + (sys.argv[1:] if argv is None else argv)
    runpy.run_module("anomalygpt.run_eval", run_name="__main__")


if __name__ == "__main__":
    main()
