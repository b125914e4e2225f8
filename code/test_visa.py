"""The original's name for ``run_eval.py --kind visa`` on the data set in its place."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["--kind", "visa", "--data", "../data/VisA"]
    runpy.run_module("anomalygpt.run_eval", run_name="__main__")
