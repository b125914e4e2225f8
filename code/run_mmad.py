"""Answers multiple-choice questions about photos: ``python run_mmad.py --questions mmad.json [--shots 1] [--out DIR]``.

The questions are MMAD's or your own. The processes of ``torchrun`` or ``deepspeed`` divide the photos. A run with --out
that was stopped or killed is continued by the same command.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.errors import UserError
from anomalygpt.evaluation.launch import add_run_options, build_predictor, measure_cells, run, whole_number

if TYPE_CHECKING:
    from anomalygpt.distributed import Process
    from anomalygpt.evaluation.protocol import Cell

METHODS = ("text", "letter", "generated")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when all questions were answered."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    return run(lambda: _answer(arguments), arguments.out)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Answer multiple-choice questions about photos.",
        epilog="docs/evaluation.md describes the file of questions, and how answers are scored.",
    )
    add, templates = parser.add_argument, ("similar", "random")
    add("--questions", type=Path, metavar="JSON", required=True, help="MMAD's file, or a list of your own")
    add("--data", type=Path, metavar="ROOT", help="the folder that photos' paths start at (default: the file's)")
    add("--shots", type=whole_number(0), default=0, metavar="K", help="references per photo (default: 0)")
    add("--templates", choices=templates, default="similar", help="MMAD's templates to use (default: similar)")
    methods = "likelihood of each option's text, of its letter, or a generated answer (default: all three)"
    add("--answer-by", nargs="+", action="extend", choices=METHODS, help=methods)
    add_run_options(parser)
    arguments = parser.parse_args(argv)
    arguments.answer_by = [method for method in METHODS if method in (arguments.answer_by or METHODS)]
    arguments.command = shlex.join(["python", "run_mmad.py", *argv])
    return arguments


def _answer(arguments: argparse.Namespace) -> None:
    from anomalygpt.config.load import load_config
    from anomalygpt.evaluation.mmad import Asker, cells_of, read_questions, report
    from anomalygpt.evaluation.provenance import Provenance, fingerprint, of_run
    from anomalygpt.evaluation.tables import publish
    from anomalygpt.files import sha256
    from anomalygpt.model.build import installed_config

    config = load_config(arguments.config or installed_config(), arguments.set)
    if config.own_llm is None:
        raise UserError(f"questions need a language model of the model's own; {config.name} has none, or asks another")
    shots, methods = arguments.shots, arguments.answer_by
    root = arguments.data or arguments.questions.parent
    cells = cells_of(read_questions(arguments.questions, root, arguments.templates, shots), shots)
    seed = config.seed if arguments.seed is None else arguments.seed
    settings = fingerprint(config, with_llm=True) | {
        "contents of the questions": sha256(arguments.questions),
        "--data": str(root.resolve()),
        "--templates": arguments.templates,
        "--answer-by": methods,
        "--seed": seed,
    }

    def build(process: "Process") -> "Callable[[Cell, Callable[[], object]], dict[str, Any]]":
        predictor = build_predictor(config, process, with_llm=True, needs_text_map=not shots)
        asker = Asker(predictor, root, shots, methods, seed)
        return lambda cell, on_photo: asker.answer(cells[cell], on_photo)

    names = {cell: list(photos) for cell, photos in cells.items()}
    process, results = measure_cells(arguments.device, arguments.out, settings, names, build)
    if not process.is_main:
        return
    rows = sorted((row for result in results for row in result["rows"]), key=lambda row: row["question"])
    photos = sum(map(len, cells.values()))
    references = f"the first {shots} of each photo's {arguments.templates} templates" if shots else "none; text map"
    seconds = sum(result["seconds"] for result in results)
    about = Provenance(
        **of_run(config, arguments.command, process, seed, seconds, photos),
        references=references,
        notes=[f"questions: {arguments.questions}, {len(rows)} about {photos} photos"],
    )
    publish(report(about, rows, methods), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
