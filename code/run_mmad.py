"""Answers multiple-choice questions: ``python run_mmad.py --questions mmad.json [--shots 1] [--out DIR]``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.evaluation.launch import ending_in_one_line, parse, whole_number

METHODS = ("text", "letter", "generated")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Answer multiple-choice questions about photos.",
        epilog="docs/evaluation.md describes the file of questions, and how answers are scored.",
    )
    add, templates = parser.add_argument, ("similar", "random")
    add("--questions", type=Path, metavar="JSON", required=True, help="MMAD's file, or a list of your own")
    add("--data", type=Path, metavar="ROOT", help="the folder that photos' paths start at (default: the file's)")
    add("--shots", type=whole_number(0), default=0, metavar="K", help="references per photo (default: 0)")
    add("--templates", choices=templates, default="similar", help="MMAD's templates to use (default: similar)")
    add("--answer-by", nargs="+", action="extend", choices=METHODS, help="how options are chosen (default: all three)")
    arguments = parse(parser, "run_mmad.py", argv)
    arguments.answer_by = [method for method in METHODS if method in (arguments.answer_by or METHODS)]
    with ending_in_one_line(arguments.out):
        from anomalygpt.evaluation.mmad import answer_questions

        answer_questions(arguments)


if __name__ == "__main__":
    main()
