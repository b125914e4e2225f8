"""Makes Vicuna version 0 out of LLaMA and LMSYS's delta, in about 4 GB of memory and without a GPU.

A run that was stopped goes on when the same command is started again. FastChat's --base and --target are understood.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.errors import user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the folder is complete and was checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    layouts = "LLaMA's folder, in Hugging Face's layout or as Meta released it"
    add("--llama", "--base", type=Path, required=True, help=layouts)
    add("--delta", required=True, help="the delta's folder, or its name on the hub: lmsys/vicuna-7b-delta-v0")
    add("--out", "--target", type=Path, required=True, help="for AnomalyGPT: ../pretrained_ckpt/vicuna_ckpt/7b_v0")
    arguments = parser.parse_args(argv)
    logging.getLogger("anomalygpt").setLevel(logging.INFO)
    with user_errors():
        from anomalygpt.weights.fetch import hub_folder
        from anomalygpt.weights.vicuna import prepare_vicuna

        delta = Path(arguments.delta)
        prepare_vicuna(arguments.llama, delta if delta.exists() else hub_folder(arguments.delta), arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
