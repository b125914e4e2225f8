"""The original's name for ``train.py --config train_mvtec``; takes its flags."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["--config", "train_mvtec"]
    runpy.run_module("anomalygpt.train", run_name="__main__")
