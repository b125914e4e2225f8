"""The original's name for ``run_eval.py --kind mvtec`` on the data set in its place."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv[1:1] = ["--kind", "mvtec", "--data", "../data/mvtec_anomaly_detection"]
    runpy.run_module("anomalygpt.run_eval", run_name="__main__")
