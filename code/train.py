"""Trains AnomalyGPT: ``python train.py --config train_mvtec``, or ``deepspeed train.py …`` on several GPUs.

Any setting can be changed on the command line, bare or after ``--set``: ``training.steps=100``. A run that was
stopped, or killed, goes on when the same command is started again.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from anomalygpt.config.load import load_config, resolve, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError, user_errors
from anomalygpt.files import claimed

if TYPE_CHECKING:
    from anomalygpt.distributed import Process
    from anomalygpt.model.anomalygpt import AnomalyGPT
    from anomalygpt.training.loop import Data, Trainer

logger = logging.getLogger("anomalygpt.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the run reached its last step."""
    arguments = _parse(argv)
    with user_errors():
        config = load_config(arguments.config, [*arguments.overrides, *arguments.set])
        if config.llm is None and config.training.answers:
            raise UserError("llm: training answers needs a language model; training.answers=false trains maps alone")
        if arguments.dry_run:
            _plan(config, arguments.processes)
            return 0
        _train(config, arguments.device)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train AnomalyGPT.", epilog="Resumes by itself where a run stopped.")
    parser.add_argument("--config", required=True, help="a shipped experiment's name, or a YAML file")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true", help="print settings, sizes, steps and memory, and stop")
    parser.add_argument("--processes", type=int, help="of a --dry-run: plan for so many (default: WORLD_SIZE, else 1)")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key.sub=value",
        help="the same, as the other commands take them; they come after the bare ones",
    )
    return parser.parse_intermixed_args(argv)


def _plan(config: ExperimentConfig, processes: int | None) -> None:
    """Prints the settings as YAML and the plan as its comments, so that the whole is a config file again."""
    from anomalygpt.distributed import adopt_starter
    from anomalygpt.training.plan import describe

    adopt_starter()
    if os.environ.get("RANK", "0") != "0":  # a launcher starts this once for each GPU
        return
    processes = processes if processes is not None else int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 1:
        raise UserError(f"--processes {processes}: expected 1 or more")
    plan = describe(config, processes)
    print(to_yaml(config) + "\n".join(f"# {line}".rstrip() for line in plan))


def _train(config: ExperimentConfig, device: str) -> None:
    from anomalygpt import distributed
    from anomalygpt.training.engine import memory_told, require_device
    from anomalygpt.training.run_folder import export_delta, record_run, require_shared

    process = distributed.start(device)
    _set_up_logging(process.is_main)
    require_device(config.training, process.device)
    distributed.seed_everything(config.seed)
    folder = resolve(config.training.output)
    with memory_told(config.training):
        model, data = _build(config, process)
        distributed.seed_everything(config.seed + process.rank)  # the weights began alike; dropout must differ
        trainer = _trainer(model, data, config, process)
        with ExitStack() as held:
            distributed.on_main(process.is_main, lambda: held.enter_context(claimed(folder, "training.output")))
            trainer.require_same_run()  # first: a refused run must not overwrite what the folder says of its own
            distributed.on_main(process.is_main, lambda: record_run(config, folder))
            require_shared(folder)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, trainer.stop_soon)
            trainer.run()
            logger.info("wrote %s", export_delta(trainer.model, config, folder, process))
    if process.is_main:
        _draw_curves(folder)
    distributed.stop()


def _draw_curves(folder: Path) -> None:
    from anomalygpt.training.pictures import draw_curves

    try:
        logger.info("wrote %s", draw_curves(folder))
    except OSError as error:
        logger.error("%s: the curves could not be drawn (%s)", folder, error)


def _set_up_logging(is_main: bool) -> None:
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _build(config: ExperimentConfig, process: "Process") -> "tuple[AnomalyGPT, Data]":
    from anomalygpt.datasets.build import build_instructions, build_pairs
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.anomalygpt import UNNAMED_CLASS
    from anomalygpt.model.build import build_model, trainable_parts
    from anomalygpt.training.loop import Data
    from anomalygpt.training.plan import parameter_table
    from anomalygpt.training.skeleton import encoder_skeleton

    # Data first: a wrong path is told before gigabytes of weights are read.
    spec = encoder_skeleton(config.encoder).spec
    transform = ImageTransform(spec.size, spec.mean, spec.std)
    train, validation = build_pairs(config.data, transform, config.seed)
    instructions = build_instructions(config.data, transform) if config.training.answers else None
    model = build_model(config, process.device, speaks=config.training.answers)
    table = parameter_table(model, trainable_parts(model, config.training.trainable))
    logger.info("parameters\n%s", "\n".join(table))
    if model.speaks and config.training.gradient_checkpointing:
        model.llama_model.gradient_checkpointing_enable({"use_reentrant": False})
    classes = {record.class_name for pairs in (train, validation) if pairs is not None for record in pairs.records}
    # A text tower's features are computed here, once: later each process would ask for other classes at other times,
    # which ZeRO 3 can't do.
    model.states([*sorted(classes), UNNAMED_CLASS])
    return model, Data(train, validation, instructions)


def _trainer(model: "AnomalyGPT", data: "Data", config: ExperimentConfig, process: "Process") -> "Trainer":
    from anomalygpt.training.engine import deepspeed_config, start_engine, total_steps
    from anomalygpt.training.loop import Trainer

    settings = config.training
    pairs = len(data.train)  # type: ignore[arg-type]
    steps = total_steps(settings, pairs)
    logger.info("%d training pairs, %d steps of %d pairs", pairs, steps, settings.batch_size)
    micro_steps = 1 if data.instructions is None else 2
    engine = start_engine(model, deepspeed_config(settings, steps, process.world_size, micro_steps))
    return Trainer(engine, data, config, process, resolve(settings.output), steps)


if __name__ == "__main__":
    sys.exit(main())
