"""Measures a model on labelled photos: ``python run_eval.py --data ROOT [--shots 1 2 4] [--rounds 5] [--out DIR]``.

Zero-shot, or against K good training photos of each class, in one round or more. Started by ``torchrun`` or
``deepspeed``, the processes share the cells (class x shots x round). A run with --out that was stopped, or killed, goes
on when the same command is started again.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anomalygpt.errors import UserError
from anomalygpt.evaluation.launch import RunOptions, add_run_options, build_predictor, run, started, whole_number

if TYPE_CHECKING:
    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.datasets.records import ImageRecord
    from anomalygpt.distributed import Process
    from anomalygpt.evaluation.cells import CellResult, CellStore
    from anomalygpt.evaluation.protocol import Cell, Plan

KINDS = ("mvtec", "visa", "loco", "crack_forest", "folder", "csv")

logger = logging.getLogger("anomalygpt.run_eval")


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """The command line."""

    data: Path
    kind: str
    classes: list[str] | None
    shots: list[int]
    round: int
    rounds: int
    reference_choice: Literal["paper", "random"]
    resolution: Literal["map", "photo"]
    no_chat: bool
    no_pictures: bool

    @property
    def root(self) -> Path:
        """The folder that photos' names start at."""
        return self.data.parent if self.kind == "csv" else self.data


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when everything was measured."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    return run(lambda: _evaluate(options), options.out)


def _parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        description="Measure maps (AUROC, AP, F1-max, AUPRO), verdicts and answers.",
        epilog="docs/evaluation.md says how each number is made.",
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="ROOT", required=True, help="the tree of photos and masks, or a CSV table")
    add("--kind", choices=KINDS, default="mvtec", help="how they are laid out (default: mvtec)")
    add("--classes", nargs="+", action="extend", metavar="CLASS", help="by default all")
    add(
        "--shots",
        type=whole_number(0),
        nargs="+",
        action="extend",
        metavar="K",
        help="references a class (default: 0)",
    )
    add("--round", type=whole_number(0), default=0, help="the first round (default: 0)")
    add("--rounds", type=whole_number(1), default=1, metavar="R", help="how many rounds (default: 1)")
    add(
        "--reference-choice",
        choices=("paper", "random"),
        default="paper",
        help="paper: numbers 4 * round + k of the sorted good training photos (default)",
    )
    add(
        "--resolution",
        choices=("map", "photo"),
        default="map",
        help="measure on the map's pixels (default) or the photo's own",
    )
    add("--no-chat", action="store_true", help="maps only: no language model is loaded")
    add("--no-pictures", action="store_true", help="tables only")
    add_run_options(parser)
    values = vars(parser.parse_args(argv))
    del values["local_rank"]
    values["shots"] = sorted(set(values["shots"] or [0]))
    return Options(**values, command=shlex.join(["python", "run_eval.py", *argv]))


def _evaluate(options: Options) -> None:
    from anomalygpt import distributed
    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.build import INDEXERS
    from anomalygpt.evaluation.cells import CellStore
    from anomalygpt.evaluation.evaluate import Evaluator
    from anomalygpt.evaluation.protocol import Plan, check, test_photos
    from anomalygpt.evaluation.provenance import fingerprint
    from anomalygpt.model.build import installed_config

    # An option without effect would let the numbers be taken for something that they are not.
    if not any(options.shots) and (options.round or options.rounds > 1 or options.reference_choice == "random"):
        raise UserError("--round, --rounds and --reference-choice choose references, and there are none; add --shots K")
    config = load_config(options.config or installed_config(), options.set)
    records = INDEXERS[options.kind](options.data, options.classes)
    rounds = tuple(range(options.round, options.round + options.rounds))
    seed = config.seed if options.seed is None else options.seed
    plan = Plan(tuple(options.shots), rounds, options.reference_choice, seed)
    check(plan, records)
    with_llm = not options.no_chat and config.llm is not None
    official = config.inference.geometry == "official"

    with started(options.device, options.out) as (process, folder):
        store = CellStore(folder)
        settings = fingerprint(config, with_llm=with_llm, device=process.device.type) | {
            "--kind": options.kind,
            "--data": str(options.data.resolve()),
            "--resolution": options.resolution,
            "--reference-choice": plan.choice,
            "--seed": seed,
        }
        distributed.on_main(process.is_main, lambda: store.require(settings))

        def build() -> "Callable[[Cell, Callable[[], object]], CellResult]":
            predictor = build_predictor(config, process, with_llm=with_llm, maps_by_text=0 in plan.shots)
            settings = (options.root, options.kind, official, options.resolution, with_llm)
            return Evaluator(predictor, records, plan, *settings).measure

        store.fill(plan.cells(records), process, lambda cell: len(test_photos(records, cell.class_name)), build)
        if process.is_main:
            _report(options, config, plan, records, store, process)


def _report(
    options: Options,
    config: "ExperimentConfig",
    plan: "Plan",
    records: "Sequence[ImageRecord]",
    store: "CellStore",
    process: "Process",
) -> None:
    from anomalygpt.datasets.records import first_offenders
    from anomalygpt.evaluation import provenance, published
    from anomalygpt.evaluation.cells import CellResult
    from anomalygpt.evaluation.figures import write_pictures
    from anomalygpt.evaluation.ground_truth import CONNECTED, SATURATED
    from anomalygpt.evaluation.protocol import photo_name, test_photos
    from anomalygpt.evaluation.tables import Report, as_markdown, write_report

    results = [store.load(cell, CellResult) for cell in plan.cells(records)]
    for result in results:
        expected = {photo_name(record, options.root) for record in test_photos(records, result.cell.class_name)}
        if other := expected ^ {photo.photo for photo in result.photos}:
            raise store.mixed(f"on other photos ({first_offenders(sorted(other))})")
    names = sorted({result.cell.class_name for result in results})
    warnings = provenance.seen_in_training(provenance.training_data(config), options.data, names)
    for warning in warnings:
        logger.warning("warning: %s", warning)
    seconds, photos = sum(result.seconds for result in results), sum(len(result.photos) for result in results)
    about = provenance.EvalProvenance(
        **provenance.of_run(config, options.command, process, plan.seed, seconds, photos),
        references=provenance.references_in_words(plan),
        data=f"{options.data} ({options.kind}), {len(names)} classes",
        maps=tuple(dict.fromkeys(result.maps for result in results)),
        defects=SATURATED if any(result.saturated for result in results) else CONNECTED,
        warnings=tuple(warnings),
    )
    dataset = published.official_dataset(options.kind, records)
    others = {shots: published.published(dataset, shots) for shots in plan.shots} if dataset else {}
    report = Report(about, results, published.title(dataset) if dataset else None, others)
    print(as_markdown(report), end="")
    if options.out:
        written = write_report(options.out, report)
        if not options.no_pictures:
            written += write_pictures(options.out, results)
        print(f"\nwrote {', '.join(str(path.relative_to(options.out)) for path in written)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
