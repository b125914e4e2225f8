"""Measures a model on labelled photos: ``python run_eval.py --data ROOT [--shots 1 2 4] [--rounds 5] [--out DIR]``.

Zero-shot, or against K good training photos of each class, in one round or more. The processes of ``torchrun`` or
``deepspeed`` divide the cells (class x shots x round). A run with --out that was stopped or killed is continued by the
same command.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from anomalygpt.config.schema import Kind
from anomalygpt.errors import UserError, set_strict
from anomalygpt.evaluation.launch import add_run_options, build_predictor, measure_cells, run, whole_number

if TYPE_CHECKING:
    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.datasets.records import ImageRecord
    from anomalygpt.distributed import Process
    from anomalygpt.evaluation.protocol import Cell, Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when everything was measured."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    return run(lambda: _evaluate(arguments), arguments.out)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure maps (AUROC, AP, F1-max, AUPRO), verdicts and answers.",
        epilog="docs/evaluation.md defines each number.",
    )
    add, choices, pixels = parser.add_argument, ("paper", "random"), ("map", "photo")
    add("--data", type=Path, metavar="ROOT", help="the tree of photos and masks, or a CSV table")
    add("--good", type=Path, metavar="DIR", help="in place of --data: normal photos, the first of them references")
    add("--bad", type=Path, metavar="DIR", help="with --good: photos with a defect")
    add("--masks", type=Path, metavar="DIR", help="with --bad: their masks, if any")
    add("--kind", choices=get_args(Kind), default="mvtec", help="the data's layout (default: mvtec)")
    add("--classes", nargs="+", action="extend", metavar="CLASS", help="default: all")
    shots = "references per class (default: 0)"
    add("--shots", type=whole_number(0), nargs="+", action="extend", metavar="K", help=shots)
    add("--round", type=whole_number(0), default=0, help="the first round (default: 0)")
    add("--rounds", type=whole_number(1), default=1, metavar="R", help="how many rounds (default: 1)")
    rule = "paper: numbers 4 * round + k of the sorted good training photos (default)"
    add("--reference-choice", choices=choices, default="paper", help=rule)
    add("--resolution", choices=pixels, default="map", help="measure on the map's pixels (default) or the photo's own")
    add("--no-chat", action="store_true", help="maps only: no language model is loaded")
    add("--no-pictures", action="store_true", help="tables only")
    add_run_options(parser)
    add("--strict", action="store_true", help="warnings about how files were read are errors")
    arguments = parser.parse_args(argv)
    pair = [name for name in ("good", "bad", "masks") if getattr(arguments, name)]
    if (arguments.data is None) != ({*pair} >= {"good", "bad"}) or (arguments.data and pair):
        parser.error("name the photos by --data ROOT, or by --good DIR and --bad DIR")
    arguments.shots = sorted(set(arguments.shots or [0]))
    arguments.command = shlex.join(["python", "run_eval.py", *argv])
    if arguments.data is None:
        arguments.data = Path(os.path.commonpath([arguments.good.resolve(), arguments.bad.resolve()]))
    # the folder that photos' names start at
    arguments.root = arguments.data.parent if arguments.kind == "csv" else arguments.data
    return arguments


def _evaluate(arguments: argparse.Namespace) -> None:
    from anomalygpt.config.load import load_config
    from anomalygpt.datasets.overview import overview
    from anomalygpt.evaluation.evaluate import Evaluator
    from anomalygpt.evaluation.protocol import photo_name, test_photos
    from anomalygpt.evaluation.provenance import fingerprint
    from anomalygpt.model.build import installed_config

    # An option without effect would make the numbers look like those of another protocol.
    if not any(arguments.shots) and (arguments.round or arguments.rounds > 1 or arguments.reference_choice == "random"):
        raise UserError("--round, --rounds and --reference-choice choose references, and there are none; add --shots K")
    config = load_config(arguments.config or installed_config(), arguments.set)
    set_strict(arguments.strict)
    plan, records = _plan(arguments, config.seed)
    with_llm = not arguments.no_chat and config.llm is not None
    settings = fingerprint(config, with_llm) | {
        "--kind": arguments.kind,
        "--data": str(arguments.data.resolve()),
        "--resolution": arguments.resolution,
        "--reference-choice": plan.choice,
        "--seed": plan.seed,
    }

    def build(process: "Process") -> "Callable[[Cell, Callable[[], object]], dict[str, Any]]":
        if process.is_main:  # it reads every mask
            print(*overview(records), "", sep="\n", file=sys.stderr)
        predictor = build_predictor(config, process, with_llm=with_llm, needs_text_map=0 in plan.shots)
        official, pictures = config.inference.geometry == "official", None if arguments.no_pictures else arguments.out
        options = (arguments.root, arguments.kind, official, arguments.resolution, with_llm, pictures)
        return Evaluator(predictor, records, plan, *options).measure

    cells = {
        cell: [photo_name(record, arguments.root) for record in test_photos(records, cell.class_name)]
        for cell in plan.cells(records)
    }
    process, results = measure_cells(arguments.device, arguments.out, settings, cells, build)
    if process.is_main:
        _report(arguments, config, plan, records, results, process)


def _plan(arguments: argparse.Namespace, seed: int) -> tuple["Plan", "Sequence[ImageRecord]"]:
    """What is measured: the plan of references, with ``seed`` where the arguments name none, and the photos."""
    from anomalygpt.datasets.build import INDEXERS
    from anomalygpt.datasets.tree import index_pair
    from anomalygpt.evaluation.protocol import Plan

    rounds = tuple(range(arguments.round, arguments.round + arguments.rounds))
    seed = seed if arguments.seed is None else arguments.seed
    plan = Plan(tuple(arguments.shots), rounds, arguments.reference_choice, seed)
    if arguments.good:
        records = index_pair(arguments.good, arguments.bad, arguments.masks, plan.good_photos_needed)
    else:
        records = INDEXERS[arguments.kind](arguments.data, arguments.classes)
    plan.check(records)
    return plan, records


def _report(
    arguments: argparse.Namespace,
    config: "ExperimentConfig",
    plan: "Plan",
    records: "Sequence[ImageRecord]",
    results: list[dict[str, Any]],
    process: "Process",
) -> None:
    from anomalygpt.evaluation import provenance
    from anomalygpt.evaluation.ground_truth import CONNECTED, SATURATED
    from anomalygpt.evaluation.tables import official_dataset, publish, report

    names = sorted({result["class"] for result in results})
    warnings = provenance.training_warnings(config, arguments.data, names)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    seconds, photos = (
        sum(numbers) for numbers in zip(*((r["seconds"], len(r["photos"])) for r in results), strict=True)
    )
    about = provenance.Provenance(
        **provenance.of_run(config, arguments.command, process, plan.seed, seconds, photos),
        references=provenance.describe_references(plan),
        notes=[
            f"data: {arguments.data} ({arguments.kind}), {len(names)} classes",
            *(f"maps and masks: {maps}" for maps in dict.fromkeys(result["maps"] for result in results)),
            f"AUPRO: {SATURATED if any(result['saturated'] for result in results) else CONNECTED}",
        ],
        warnings=warnings,
    )
    publish(report(about, results, official_dataset(arguments.kind, records)), arguments.out)


if __name__ == "__main__":
    sys.exit(main())
