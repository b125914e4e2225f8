#!/usr/bin/env bash
# Trains the compact model in its two stages, also on a CPU; a run that was stopped is resumed.
# Settings at the end apply to both stages: "data.sources=[{kind: mvtec, root: ../my_parts}]"
set -euo pipefail
cd "$(dirname "$0")/.."
for stage in 1_map 2_answer; do
    python train.py --config "train_compact_$stage" "$@"
done
echo "Copy runs/train_compact_2_answer/model.safetensors to pretrained_ckpt/anomalygpt_compact/ to use it by default."
