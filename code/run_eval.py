"""Measures a model on a labelled tree of photos: ``python run_eval.py --data ROOT [--shots 4] [--out DIR]``.

Zero-shot, or against the first K good training photos of each class. Writes results.json and results.md into --out.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalygpt.config.load import commit, load_config
from anomalygpt.datasets.folder import index_folder
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import ImageRecord, choose_classes
from anomalygpt.errors import UserError, user_errors

logger = logging.getLogger("anomalygpt.run_eval")


class EvaluationError(UserError):
    """The result can't be written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every class was measured."""
    arguments = _parse(argv)
    given = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "run_eval.py", *given])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with user_errors():
        config = load_config(arguments.config or _default_config(), arguments.set)
        return _run(arguments, config, command)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure image-AUROC, pixel-AUROC and the accuracy of the answers.")
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the tree of photos and masks")
    parser.add_argument("--kind", default="mvtec", choices=("mvtec", "folder"), help="how it is laid out")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="by default all")
    parser.add_argument("--shots", type=_count, default=0, metavar="K", help="reference photos a class (default: 0)")
    parser.add_argument("--round", type=_count, default=0, help="which references: 4 * round + k (default: 0)")
    parser.add_argument("--no-chat", action="store_true", help="maps only: no language model is loaded")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results.json and results.md")
    parser.add_argument("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--set", nargs="+", default=[], metavar="key.sub=value", help="settings to change")
    return parser.parse_args(argv)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return value


def _default_config() -> str:
    from anomalygpt.model.build import installed_config

    return installed_config()


def _run(arguments: argparse.Namespace, config: Any, command: str) -> int:
    records = _index(arguments)
    classes = sorted({record.class_name for record in records})
    _check(arguments, records, classes)
    predictor = _predictor(arguments, config)
    results = _measure(predictor, records, classes, arguments, mask_rule(config))
    facts = _facts(predictor, arguments, config, command)
    from anomalygpt.evaluation.report import as_markdown, write_report

    print(as_markdown(facts, results), end="")
    if arguments.out:
        try:
            written = write_report(arguments.out, facts, results)
        except OSError as error:
            raise EvaluationError(f"--out {arguments.out}: can't be written ({error})") from error
        print(f"\nwrote {written[0]} and {written[1].name}", file=sys.stderr)
    return 0


def _index(arguments: argparse.Namespace) -> list[ImageRecord]:
    if arguments.kind == "mvtec":
        return index_mvtec(arguments.data, arguments.classes)
    records = index_folder(arguments.data)
    found = sorted({record.class_name for record in records})
    chosen = choose_classes(arguments.data, found, arguments.classes)
    return [record for record in records if record.class_name in chosen]


def _check(arguments: argparse.Namespace, records: Sequence[ImageRecord], classes: Sequence[str]) -> None:
    """What can be known to fail fails before the model is loaded."""
    from anomalygpt.evaluation.protocol import reference_records

    for name in classes:
        reference_records([r for r in records if r.class_name == name], arguments.shots, arguments.round)
    if arguments.out and arguments.out.exists() and not arguments.out.is_dir():
        raise EvaluationError(f"--out {arguments.out}: this is a file, a folder was expected")


def _predictor(arguments: argparse.Namespace, config: Any) -> Any:
    import torch

    from anomalygpt.inference.predictor import Predictor

    torch.manual_seed(config.seed)  # answers are sampled
    predictor = Predictor.from_config(config, arguments.device, speaks=not arguments.no_chat)
    if not config.deltas and (predictor.model.speaks or not arguments.shots):
        logger.warning("warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights")
    return predictor


def mask_rule(config: Any) -> Any:
    """The rule that belongs to a config's geometry."""
    return "official" if config.inference.geometry == "official" else "as_seen"


def _measure(
    predictor: Any, records: Sequence[ImageRecord], classes: Sequence[str], arguments: argparse.Namespace, rule: Any
) -> list[Any]:
    from tqdm import tqdm

    from anomalygpt.evaluation.protocol import evaluate_category

    results = []
    tested = sum(record.split == "test" for record in records)
    with tqdm(total=tested, unit="photo", disable=not sys.stderr.isatty()) as bar:
        for name in classes:
            bar.set_description(name)
            results.append(
                evaluate_category(
                    predictor,
                    records,
                    arguments.shots,
                    name,
                    round=arguments.round,
                    chat=predictor.model.speaks,
                    mask_rule=rule,
                    on_photo=bar.update,
                )
            )
    return results


def _facts(predictor: Any, arguments: argparse.Namespace, config: Any, command: str) -> Any:
    from anomalygpt.evaluation.protocol import MASK_RULES
    from anomalygpt.evaluation.report import RunFacts
    from anomalygpt.model.prompt_learner import MAP_SIZE

    return RunFacts(
        command=command,
        config=config.name,
        commit=commit(),
        geometry=predictor.transform.geometry,
        mask_rule=MASK_RULES[mask_rule(config)],
        map_size=MAP_SIZE,
        shots=arguments.shots,
        round=arguments.round,
        device=str(predictor.model.device),
    )


if __name__ == "__main__":
    sys.exit(main())
