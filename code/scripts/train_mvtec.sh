#!/usr/bin/env bash
# The paper's training: MVTec-AD, simulated defects.
# Uses all GPUs of this machine. Settings to change go at the end: training.steps=100 …
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/find_deepspeed.sh
deepspeed train.py --config train_mvtec "$@"
