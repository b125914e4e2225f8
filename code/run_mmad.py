"""Answers multiple-choice questions about photos: ``python run_mmad.py --questions mmad.json [--shots 1] [--out DIR]``.

The questions are MMAD's or your own. Started by ``torchrun`` or ``deepspeed``, the processes share the photos. A run
with --out that was stopped, or killed, goes on when the same command is started again.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anomalygpt.errors import UserError
from anomalygpt.evaluation.launch import RunOptions, add_run_options, build_predictor, run, started, whole_number

if TYPE_CHECKING:
    from anomalygpt.evaluation.protocol import Cell

METHODS = ("text", "letter", "generated")


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """The command line; ``answer_by`` in the order of ``METHODS``."""

    questions: Path
    data: Path | None
    shots: int
    templates: Literal["similar", "random"]
    answer_by: list[Literal["text", "letter", "generated"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when all questions were answered."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    return run(lambda: _answer(options), options.out)


def _parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        description="Answer multiple-choice questions about photos.",
        epilog="docs/evaluation.md says what the file holds, and how answers are counted.",
    )
    add = parser.add_argument
    add("--questions", type=Path, metavar="JSON", required=True, help="MMAD's file, or a list of your own")
    add("--data", type=Path, metavar="ROOT", help="the folder that photos' paths start at (default: the file's)")
    add("--shots", type=whole_number(0), default=0, metavar="K", help="references per photo (default: 0)")
    add(
        "--templates",
        choices=("similar", "random"),
        default="similar",
        help="MMAD's templates that are references (default: similar)",
    )
    add(
        "--answer-by",
        nargs="+",
        action="extend",
        choices=METHODS,
        help="likelihood of each option's text, of its letter, or a generated answer (default: all three)",
    )
    add_run_options(parser)
    values = vars(parser.parse_args(argv))
    del values["local_rank"]
    values["answer_by"] = [method for method in METHODS if method in (values["answer_by"] or METHODS)]
    return Options(**values, command=shlex.join(["python", "run_mmad.py", *argv]))


def _answer(options: Options) -> None:
    from anomalygpt import distributed
    from anomalygpt.config.load import load_config
    from anomalygpt.evaluation.cells import CellStore
    from anomalygpt.evaluation.mmad import Answers, Asker, MmadProvenance, cells_of, read_questions, write_report
    from anomalygpt.evaluation.provenance import file_digest, fingerprint, of_run
    from anomalygpt.model.build import installed_config

    config = load_config(options.config or installed_config(), options.set)
    if config.llm is None:
        raise UserError(f"questions need a language model, and {config.name} has none (llm: null)")
    root = options.data or options.questions.parent
    questions = read_questions(options.questions, root, options.templates, options.shots)
    cells = cells_of(questions, options.shots)
    seed = config.seed if options.seed is None else options.seed
    with started(options.device, options.out) as (process, folder):
        store = CellStore(folder)
        settings = fingerprint(config, with_llm=True, device=process.device.type) | {
            "--questions": str(options.questions.resolve()),
            "contents of the questions": file_digest(options.questions),
            "--data": str(root.resolve()),
            "--templates": options.templates,
            "--answer-by": options.answer_by,
            "--seed": seed,
        }
        distributed.on_main(process.is_main, lambda: store.require(settings))

        def build() -> "Callable[[Cell, Callable[[], object]], Answers]":
            predictor = build_predictor(config, process, with_llm=True, maps_by_text=not options.shots)
            asker = Asker(predictor, root, options.shots, options.answer_by, seed)
            return lambda cell, on_photo: asker.answer(cells[cell], on_photo)

        store.fill(list(cells), process, lambda cell: len(cells[cell]), build)
        if not process.is_main:
            return
        found = [store.load(cell, Answers) for cell in cells]
        rows = sorted((row for answers in found for row in answers.rows), key=lambda row: row.key)
        photos = sum(answers.photos for answers in found)
        references = f"the first {options.shots} of each photo's {options.templates} templates"
        about = MmadProvenance(
            **of_run(config, options.command, process, seed, sum(answers.seconds for answers in found), photos),
            references=references if options.shots else "none; text map",
            questions=f"{options.questions}, {len(rows)} about {photos} photos",
        )
        print(write_report(options.out, about, rows, options.answer_by), end="")
        if options.out:
            print("\nwrote results.json, results.md, results.tex, answers.csv", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
