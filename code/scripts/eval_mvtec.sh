#!/usr/bin/env bash
# Measures on MVTec-AD, zero-shot unless told otherwise: scripts/eval_mvtec.sh [--shots 4] [--round 0] [--out DIR] …
set -euo pipefail
cd "$(dirname "$0")/.."
python run_eval.py --data ../data/mvtec_anomaly_detection "$@"
