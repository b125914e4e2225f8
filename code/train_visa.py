"""The original's name for ``train.py --config train_visa``; takes its flags."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["--config", "train_visa"]
    runpy.run_module("anomalygpt.train", run_name="__main__")
