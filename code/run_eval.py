"""Measures a model on labelled photos: ``python run_eval.py --data ROOT [--shots 1 2 4] [--rounds 5] [--out DIR]``.

Zero-shot, or against K good training photos of each class, in one round or more; with ``--choices FILE`` by
multiple-choice questions (MMAD). Started by ``torchrun`` or ``deepspeed``, the processes share the photos. A run with
--out that was stopped, or killed, goes on when the same command is started again.
"""

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.config.load import commit, load_config
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError, user_errors
from anomalygpt.files import claimed

if TYPE_CHECKING:
    from anomalygpt.datasets.records import ImageRecord
    from anomalygpt.evaluation.choices import Answers
    from anomalygpt.evaluation.measured import Measured
    from anomalygpt.evaluation.protocol import Plan
    from anomalygpt.evaluation.questions import Question
    from anomalygpt.evaluation.results import CategoryResult
    from anomalygpt.evaluation.session import Session
    from anomalygpt.evaluation.sharing import Share
    from anomalygpt.evaluation.state import State
    from anomalygpt.inference.predictor import Predictor

logger = logging.getLogger("anomalygpt.run_eval")

ANSWER_BY = ("text", "letter", "generated")
KINDS = ("mvtec", "visa", "loco", "crack_forest", "folder", "csv")
# What an option means that was not given. The parser leaves it None, so that one that was given can be told from it.
DEFAULTS = {
    "shots": [0],
    "kind": "mvtec",
    "round": 0,
    "rounds": 1,
    "reference_choice": "paper",
    "resolution": "map",
    "templates": "similar",
    "answer_by": ANSWER_BY,
}
NOT_OF_CHOICES = ("kind", "classes", "round", "rounds", "reference_choice", "resolution")
ONLY_OF_CHOICES = ("templates", "answer_by")
INTERRUPTED = 130  # what shells return after Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when everything was measured."""
    arguments = _parse(argv)
    given = sys.argv[1:] if argv is None else argv
    arguments.command = shlex.join(["python", "run_eval.py", *given])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with user_errors():
        _check(arguments)
        config = load_config(arguments.config or _default_config(), arguments.set)
        try:
            return _answer_choices(arguments, config) if arguments.choices else _measure(arguments, config)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on" if arguments.out else "\nstopped", file=sys.stderr)
            return INTERRUPTED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure maps (AUROC, AP, F1-max, AUPRO), verdicts and answers.",
        epilog="docs/evaluation.md says how each number is made.",
    )
    data = parser.add_argument_group("photos")
    data.add_argument("--data", type=Path, metavar="ROOT", help="the tree of photos and masks, or a CSV table")
    data.add_argument("--kind", choices=KINDS, help="how they are laid out (default: mvtec)")
    data.add_argument("--classes", nargs="+", action="extend", metavar="CLASS", help="by default all")
    data.add_argument("--choices", type=Path, metavar="JSON", help="multiple-choice questions, MMAD's or your own")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--shots", type=_count, nargs="+", action="extend", metavar="K", help="reference photos a class (default: 0)"
    )
    protocol.add_argument("--round", type=_count, help="the first round (default: 0)")
    protocol.add_argument("--rounds", type=_positive, metavar="R", help="how many rounds (default: 1)")
    protocol.add_argument(
        "--reference-choice",
        choices=("paper", "random"),
        help="paper: numbers 4 * round + k of the sorted good training photos (default)",
    )
    protocol.add_argument("--seed", type=_count, help="of random references and sampled answers (default: config's)")
    protocol.add_argument(
        "--resolution", choices=("map", "photo"), help="measure on the map's pixels (default) or the photo's own"
    )
    protocol.add_argument("--no-chat", action="store_true", help="maps only: no language model is loaded")
    choices = parser.add_argument_group("multiple choice")
    choices.add_argument(
        "--templates", choices=("similar", "random"), help="MMAD's templates that are references (default: similar)"
    )
    choices.add_argument(
        "--answer-by",
        nargs="+",
        action="extend",
        choices=ANSWER_BY,
        help="likelihood of each option's text, of its letter, or a generated answer (default: all three)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder for tables, pictures, and the state to go on from")
    run.add_argument("--no-pictures", action="store_true", help="tables only")
    run.add_argument("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    run.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change"
    )
    run.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(argv)


def _count(text: str) -> int:
    return _at_least(text, 0)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
    return value


def _check(arguments: argparse.Namespace) -> None:
    """Options that do not go together are told before anything is read. What was not given gets its default."""
    _refuse_idle(arguments)
    for name, value in DEFAULTS.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.shots = sorted(set(arguments.shots))
    if arguments.data is None and not arguments.choices:
        raise UserError("--data is missing: the folder of labelled photos to measure on")
    if arguments.choices and (arguments.no_chat or len(arguments.shots) > 1):
        raise UserError("--choices asks questions about one number of references: no --no-chat, one --shots")
    if arguments.out and arguments.out.exists() and not arguments.out.is_dir():
        raise UserError(f"--out {arguments.out}: this is a file, a folder was expected")


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """An option without effect would let the numbers be taken for something that they are not."""
    if arguments.choices and (idle := _given(arguments, NOT_OF_CHOICES)):
        raise UserError(f"--choices has no use for {idle}: the file names each question's photo and references")
    if not arguments.choices and (idle := _given(arguments, ONLY_OF_CHOICES)):
        raise UserError(f"{idle} without --choices: there are no questions")
    if any(arguments.shots or ()):
        return
    if (arguments.rounds or 1) > 1:
        raise UserError(f"--rounds {arguments.rounds}: rounds differ in their references; add --shots K")
    if arguments.reference_choice == "random" or arguments.round is not None:
        idle = _given(arguments, ("round", "reference_choice"))
        raise UserError(f"{idle}: without references there are none to choose; add --shots K")


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> str:
    """The options among these that are on the command line."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None)


def _default_config() -> str:
    from anomalygpt.model.build import installed_config

    return installed_config()


# -- processes ---------------------------------------------------------------------------------------------------------


@contextmanager
def _processes(arguments: argparse.Namespace) -> "Iterator[Share]":
    """Joins the processes of ``torchrun``, ``deepspeed``, ``mpirun`` or ``srun``; alone, nothing is joined.

    Sets ``arguments.device``.
    """
    from anomalygpt import distributed
    from anomalygpt.evaluation.sharing import Share

    distributed.adopt_starter()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Share()
        return
    # Shares take as long as their photos do, and the first to be done waits for the last.
    process = distributed.start(arguments.device.partition(":")[0], patience=timedelta(days=30))
    arguments.device = str(process.device)
    try:
        yield Share(process.rank, process.world_size)
    finally:
        distributed.stop()


@contextmanager
def _folder(arguments: argparse.Namespace, share: "Share") -> Iterator[Path]:
    """--out, or one folder for all processes that is deleted afterwards."""
    if arguments.out:
        from anomalygpt.distributed import on_main

        with ExitStack() as held:
            on_main(share.is_main, lambda: held.enter_context(claimed(arguments.out, "--out")))
            yield arguments.out
    elif share.count == 1:
        with tempfile.TemporaryDirectory(prefix="run_eval_") as folder:
            yield Path(folder)
    else:
        # Processes of several machines would not see each other's temporary folder.
        raise UserError("several processes meet in a folder: name one that all of them see, --out DIR")


@contextmanager
def _writing(arguments: argparse.Namespace) -> Iterator[None]:
    """A full disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        where = f"--out {arguments.out}" if arguments.out else tempfile.gettempdir()
        raise UserError(f"{where}: can't be written ({error.strerror or error})") from error


# -- maps, verdicts and answers ----------------------------------------------------------------------------------------


def _measure(arguments: argparse.Namespace, config: ExperimentConfig) -> int:
    from anomalygpt.datasets.build import INDEXERS
    from anomalygpt.evaluation.protocol import Plan, check

    records = INDEXERS[arguments.kind](arguments.data, arguments.classes)
    rounds = tuple(range(arguments.round, arguments.round + arguments.rounds))
    seed = config.seed if arguments.seed is None else arguments.seed
    plan = Plan(tuple(arguments.shots), rounds, arguments.reference_choice, seed)
    check(plan, records)
    with _processes(arguments) as share, _folder(arguments, share) as folder, _writing(arguments):
        state = _state(arguments, config, plan, folder, share)
        session = _session(arguments, config, records, plan, state, share)
        results = _run(session, plan, records)
        if share.is_main:
            _report(arguments, config, plan, records, results, share)
    return 0


def _root(arguments: argparse.Namespace) -> Path:
    """The folder that photos' names start at."""
    return arguments.data.parent if arguments.kind == "csv" else arguments.data


def _state(
    arguments: argparse.Namespace, config: ExperimentConfig, plan: "Plan", folder: Path, share: "Share"
) -> "State[Measured]":
    from anomalygpt import distributed
    from anomalygpt.evaluation.facts import data_fingerprint, fingerprint
    from anomalygpt.evaluation.measured import Measured
    from anomalygpt.evaluation.state import State
    from anomalygpt.model.build import choose_device

    state = State(folder, Measured)
    chat = not arguments.no_chat and config.llm is not None
    settings = fingerprint(config, chat=chat, device=choose_device(arguments.device).type)
    settings |= data_fingerprint(arguments.kind, arguments.data, arguments.resolution, plan)
    distributed.on_main(share.is_main, lambda: state.require(settings))
    return state


def _session(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    records: "Sequence[ImageRecord]",
    plan: "Plan",
    state: "State[Measured]",
    share: "Share",
) -> "Session":
    """The session; its model is built only where photos are left to be measured."""
    from anomalygpt.evaluation.session import Session, Settings

    chat = not arguments.no_chat and config.llm is not None
    official = config.inference.geometry == "official"
    settings = Settings(_root(arguments), arguments.kind, official, arguments.resolution, chat)
    names = sorted({record.class_name for record in records})
    session = Session(None, records, plan, settings, state, share)
    left = sum(session.left(cell) for cell in plan.cells(names))
    if not left:
        return session
    predictor = _predictor(arguments, config, speaks=chat, maps_by_text=0 in plan.shots)
    return Session(predictor, records, plan, settings, state, share)


def _predictor(
    arguments: argparse.Namespace, config: ExperimentConfig, *, speaks: bool, maps_by_text: bool
) -> "Predictor":
    import torch

    from anomalygpt.inference.predictor import Predictor

    torch.manual_seed(config.seed)  # parts that no delta fills are random, and must be the same in all processes
    predictor = Predictor.from_config(config, arguments.device, speaks=speaks)
    predictor.look_as_evaluated()
    if not config.deltas and (speaks or maps_by_text):
        logger.warning("warning: no delta is loaded (deltas=[]), so answers and text maps come from untrained weights")
    return predictor


def _run(session: "Session", plan: "Plan", records: "Sequence[ImageRecord]") -> "list[CategoryResult]":
    from tqdm import tqdm

    cells = plan.cells(sorted({record.class_name for record in records}))
    share = session.share
    left = -(-sum(session.left(cell) for cell in cells) // share.count)
    results = []
    quiet = not share.is_main or not left or not sys.stderr.isatty()
    with tqdm(total=left, unit="photo" if share.count == 1 else f"x{share.count} photos", disable=quiet) as bar:
        session.on_photo = bar.update
        for cell in cells:
            bar.set_description(f"{cell.class_name}, {cell.shots}-shot {cell.round}" if cell.shots else cell.class_name)
            found = session.measure(cell)
            if found is not None:
                results.append(found)
    return results


def _report(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    plan: "Plan",
    records: "Sequence[ImageRecord]",
    results: "Sequence[CategoryResult]",
    share: "Share",
) -> None:
    from anomalygpt.evaluation.pictures import write_pictures
    from anomalygpt.evaluation.published import official_dataset, published, title
    from anomalygpt.evaluation.report import Report, as_markdown, write_report
    from anomalygpt.evaluation.results import by_shots

    dataset = official_dataset(arguments.kind, records)
    others = {shots: published(dataset, shots) for shots in plan.shots} if dataset else None
    report = Report(
        _facts(arguments, config, plan, results, share),
        tuple(by_shots(results)),
        title(dataset) if dataset else None,
        others,
    )
    print(as_markdown(report), end="")
    if arguments.out:
        written = write_report(arguments.out, report)
        if not arguments.no_pictures:
            written += write_pictures(arguments.out, report.by_shots)
        print(f"\nwrote {', '.join(str(path.relative_to(arguments.out)) for path in written)}", file=sys.stderr)


def _facts(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    plan: "Plan",
    results: "Sequence[CategoryResult]",
    share: "Share",
) -> Any:
    from anomalygpt.evaluation import facts
    from anomalygpt.evaluation.report import RunFacts
    from anomalygpt.evaluation.trained_on import seen_in_training, trainings
    from anomalygpt.model.build import choose_device

    names = sorted({result.cell.class_name for result in results})
    trained = trainings(config)
    warnings = seen_in_training(trained, arguments.data, names)
    for warning in warnings:
        logger.warning("warning: %s", warning)
    settings = [result.setting for result in results]
    photos = sum(len(result.rows) for result in results)
    return RunFacts(
        command=arguments.command,
        config=config.name,
        commit=commit(),
        data=f"{arguments.data} ({arguments.kind}), {len(names)} classes",
        references=facts.references_in_words(plan),
        maps=facts.maps_in_words(settings),
        defects=facts.defects_in_words(settings),
        seed=plan.seed,
        device=str(choose_device(arguments.device)),
        processes=share.count,
        trained_on=tuple(map(str, trained)),
        warnings=tuple(warnings),
        seconds_per_photo=sum(result.seconds for result in results) / photos if photos else None,
        peak_memory=facts.peak_memory(),
    )


# -- multiple choice ---------------------------------------------------------------------------------------------------


def _answer_choices(arguments: argparse.Namespace, config: ExperimentConfig) -> int:
    from anomalygpt.evaluation.questions import read_questions

    if config.llm is None:
        raise UserError(f"--choices needs a language model, and {config.name} has none (llm: null)")
    root = arguments.data or arguments.choices.parent
    (shots,) = arguments.shots
    questions = read_questions(arguments.choices, root, arguments.templates, shots)
    with _processes(arguments) as share, _folder(arguments, share) as folder, _writing(arguments):
        answers = _ask(arguments, config, questions, root, folder, share)
        if answers is not None:
            _report_choices(arguments, config, answers, share)
    return 0


def _ask(
    arguments: argparse.Namespace,
    config: ExperimentConfig,
    questions: "Sequence[Question]",
    root: Path,
    folder: Path,
    share: "Share",
) -> "Answers | None":
    from tqdm import tqdm

    from anomalygpt import distributed
    from anomalygpt.evaluation.choices import Answers, Asker, answer_shared, choices_cell
    from anomalygpt.evaluation.facts import fingerprint
    from anomalygpt.evaluation.state import State
    from anomalygpt.model.build import choose_device

    (shots,) = arguments.shots
    seed = config.seed if arguments.seed is None else arguments.seed
    state = State(folder, Answers)
    settings = fingerprint(config, chat=True, device=choose_device(arguments.device).type)
    settings |= {"--choices": str(arguments.choices.resolve()), "--data": str(root.resolve()), "--seed": seed}
    settings |= {"--templates": arguments.templates, "--answer-by": sorted(arguments.answer_by)}
    distributed.on_main(share.is_main, lambda: state.require(settings))

    def make() -> Asker:
        predictor = _predictor(arguments, config, speaks=True, maps_by_text=not shots)
        return Asker(predictor, root, shots, arguments.answer_by, seed)

    photos = len({question.image for question in questions}) - len(state.measured(choices_cell(shots)))
    quiet = not share.is_main or not photos or not sys.stderr.isatty()
    with tqdm(total=-(-photos // share.count), unit="photo", disable=quiet) as bar:
        return answer_shared(make, questions, state, shots, share, bar.update)


def _report_choices(
    arguments: argparse.Namespace, config: ExperimentConfig, answers: "Answers", share: "Share"
) -> None:
    from anomalygpt.evaluation.choices import METHODS
    from anomalygpt.evaluation.choices_report import ChoicesFacts, ChoicesReport, as_markdown, write_report
    from anomalygpt.evaluation.facts import peak_memory
    from anomalygpt.evaluation.trained_on import trainings
    from anomalygpt.model.build import choose_device

    (shots,) = arguments.shots
    facts = ChoicesFacts(
        command=arguments.command,
        config=config.name,
        commit=commit(),
        questions=f"{arguments.choices}, {len(answers.rows)} about {len(answers.photos)} photos",
        references=f"the first {shots} of each photo's {arguments.templates} templates" if shots else "none; text map",
        seed=config.seed if arguments.seed is None else arguments.seed,
        device=str(choose_device(arguments.device)),
        processes=share.count,
        trained_on=tuple(map(str, trainings(config))),
        seconds_per_photo=answers.seconds / len(answers.photos) if answers.photos else None,
        peak_memory=peak_memory(),
    )
    methods = tuple(method for method in METHODS if method in arguments.answer_by)
    report = ChoicesReport(facts, tuple(answers.rows), methods)
    print(as_markdown(report), end="")
    if arguments.out:
        written = write_report(arguments.out, report)
        print(f"\nwrote {', '.join(path.name for path in written)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
