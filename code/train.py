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
    from anomalygpt.training.loop import Trainer

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
    setting = "key.sub=value"
    parser.add_argument("overrides", nargs="*", metavar=setting, help="settings to change")
    same = "the same, as the other commands take them; they come after the bare ones"
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar=setting, help=same)
    return parser.parse_intermixed_args(argv)


def _plan(config: ExperimentConfig, processes: int | None) -> None:
    """Prints the settings as YAML and the plan as its comments, so that the whole is a config file again."""
    from anomalygpt.distributed import adopt_launcher_environment
    from anomalygpt.training.dry_run import describe

    adopt_launcher_environment()
    if os.environ.get("RANK", "0") != "0":  # a launcher starts this once for each GPU
        return
    processes = processes if processes is not None else int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 1:
        raise UserError(f"--processes {processes}: expected 1 or more")
    plan = describe(config, processes)
    print(to_yaml(config) + "\n".join(f"# {line}".rstrip() for line in plan))


def _train(config: ExperimentConfig, device: str) -> None:
    from anomalygpt import distributed
    from anomalygpt.training.engine import report_out_of_memory, require_device

    process = distributed.start(device)
    level = logging.INFO if process.is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    require_device(config.training, process.device)
    folder = resolve(config.training.output)
    with report_out_of_memory(config.training), ExitStack() as held:
        trainer = _build(config, process)
        distributed.on_main(process.is_main, lambda: held.enter_context(claimed(folder, "training.output")))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, trainer.stop_soon)
        trainer.run()
    if process.is_main:
        _draw_curves(folder)
    distributed.stop()


def _draw_curves(folder: Path) -> None:
    from anomalygpt.training.pictures import draw_curves

    try:
        logger.info("wrote %s", draw_curves(folder))
    except OSError as error:
        logger.error("%s: the curves could not be drawn (%s)", folder, error)


def _build(config: ExperimentConfig, process: "Process") -> "Trainer":
    from anomalygpt.datasets.build import build_instructions, build_pairs
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.distributed import seed_everything
    from anomalygpt.model.anomalygpt import UNNAMED_CLASS
    from anomalygpt.model.build import build_model, image_spec, trainable_parts
    from anomalygpt.training.dry_run import parameter_table
    from anomalygpt.training.engine import deepspeed_config, start_engine, total_steps
    from anomalygpt.training.loop import Data, Trainer

    settings = config.training
    seed_everything(config.seed)
    # Data first: a wrong path is reported before gigabytes of weights are read.
    spec = image_spec(config.encoder)
    transform = ImageTransform(spec.size, spec.mean, spec.std)
    train, validation = build_pairs(config.data, transform, config.seed)
    instructions = build_instructions(config.data, transform) if settings.answers else None
    model = build_model(config, process.device, with_llm=settings.answers)
    table = parameter_table(model, trainable_parts(model, settings.trainable))
    logger.info("parameters\n%s", "\n".join(table))
    if model.has_llm and settings.gradient_checkpointing:
        model.llama_model.gradient_checkpointing_enable({"use_reentrant": False})
    classes = {record.class_name for pairs in (train, validation) if pairs is not None for record in pairs.records}
    # A text tower's features are computed here, once: later each process would ask for other classes at other times,
    # which ZeRO 3 can't do.
    model.states([*sorted(classes), UNNAMED_CLASS])
    seed_everything(config.seed + process.rank)  # all start from the same weights, but dropout must differ
    steps = total_steps(settings, len(train))
    logger.info("%d training pairs, %d steps of %d pairs", len(train), steps, settings.batch_size)
    micro_steps = 1 if instructions is None else 2
    engine = start_engine(model, deepspeed_config(settings, steps, process.world_size, micro_steps))
    return Trainer(engine, Data(train, validation, instructions), config, process, resolve(settings.output), steps)


if __name__ == "__main__":
    sys.exit(main())
