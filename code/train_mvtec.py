"""The original's name for ``train.py --config train_mvtec``; takes its flags."""

import sys

if __name__ == "__main__":
    from anomalygpt.train import main

    sys.exit(main(["--config", "train_mvtec", *sys.argv[1:]]))
