"""Measures a model on labelled photos: ``python run_eval.py --data ROOT [--shots 1 2 4] [--rounds 5] [--out DIR]``.

The processes of ``torchrun`` or ``deepspeed`` divide the cells (class x shots x round); --out goes on where it stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from anomalygpt.config.schema import Kind
from anomalygpt.evaluation.launch import ending_in_one_line, parse, whole_number


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Measure maps (AUROC, AP, F1-max, AUPRO), verdicts and answers.",
        epilog="docs/evaluation.md defines each number.",
    )
    add, choices = parser.add_argument, ("paper", "random")
    add("--data", type=Path, metavar="ROOT", help="the tree of photos and masks, or a CSV table")
    add("--good", type=Path, metavar="DIR", help="in place of --data: normal photos, the first of them references")
    add("--bad", type=Path, metavar="DIR", help="with --good: photos with a defect")
    add("--masks", type=Path, metavar="DIR", help="with --bad: their masks, if any")
    add("--kind", choices=get_args(Kind), default="mvtec", help="the data's layout (default: mvtec)")
    add("--classes", nargs="+", action="extend", metavar="CLASS", help="default: all")
    add("--shots", type=whole_number(0), nargs="+", action="extend", metavar="K", help="references a class (default 0)")
    add("--rounds", type=whole_number(1), default=1, metavar="R", help="how many rounds (default: 1)")
    add("--reference-choice", choices=choices, default="paper", help="paper (default): good photos 4 * round + k")
    add("--batch-size", type=whole_number(1), default=8, metavar="N", help="photos judged at once (default: 8)")
    add("--no-chat", action="store_true", help="maps only: no language model is loaded")
    add("--no-pictures", action="store_true", help="tables only")
    add("--strict", action="store_true", help="warnings about how files were read are errors")
    arguments = parse(parser, "run_eval.py", argv)
    with ending_in_one_line(arguments.out):
        from anomalygpt.evaluation.evaluate import evaluate

        evaluate(arguments)


if __name__ == "__main__":
    main()
