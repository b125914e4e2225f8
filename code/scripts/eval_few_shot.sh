#!/usr/bin/env bash
# The paper's few-shot protocol, 1, 2 and 4 references in five rounds: scripts/eval_few_shot.sh KIND ROOT OUT [options …]
# as in: scripts/eval_few_shot.sh visa ../data/VisA ../runs/eval_visa --config imagebind_vicuna7b_mvtec   (cross-data)
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 3 ]; then
  echo "usage: scripts/eval_few_shot.sh KIND ROOT OUT [options of run_eval.py]; paths start at code/" >&2
  exit 2
fi
kind=$1 root=$2 out=$3
shift 3
${LAUNCH:-python} run_eval.py --kind "$kind" --data "$root" --shots 1 2 4 --rounds 5 --out "$out" "$@"
