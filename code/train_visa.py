"""The original's name for ``train.py --config train_visa``; takes its flags."""

import sys

if __name__ == "__main__":
    from anomalygpt.train import main

    sys.exit(main(["--config", "train_visa", *sys.argv[1:]]))
