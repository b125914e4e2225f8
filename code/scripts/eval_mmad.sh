#!/usr/bin/env bash
# MMAD's multiple-choice questions, with one similar template each: scripts/eval_mmad.sh [--shots 0] [--out DIR] …
# On several GPUs: LAUNCH="torchrun --standalone --nproc_per_node 4" scripts/eval_mmad.sh --out DIR …
set -euo pipefail
cd "$(dirname "$0")/.."
[[ " $* " == *" --shots"[\ =]* ]] || set -- --shots 1 "$@"
${LAUNCH:-python} run_eval.py --choices ../data/MMAD/mmad.json "$@"
