#!/usr/bin/env bash
# Trains the compact model in its three stages, also on a CPU; a run that was stopped is resumed.
# Settings at the end apply to all stages: "data.sources=[{kind: mvtec, root: ../my_parts}]"
set -euo pipefail
cd "$(dirname "$0")/.."
for stage in 1_map 2_answer 3_words; do
    python train.py --config "train_compact_$stage" "$@"
done
echo "docs/training.md says how a YAML names the deltas of runs/train_compact_2_answer and runs/train_compact_3_words."
