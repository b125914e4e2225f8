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
from typing import Any

from anomalygpt.config.load import load_config, resolve, to_yaml
from anomalygpt.config.original_flags import original_settings
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import UserError, set_strict, user_errors
from anomalygpt.files import claimed


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the run reached its last step."""
    parser = argparse.ArgumentParser(description="Train AnomalyGPT.", epilog="A run that was stopped is resumed.")
    parser.add_argument("--config", required=True, help="a shipped experiment's name, or a YAML file")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true", help="print settings, sizes, steps and memory, and stop")
    parser.add_argument("--strict", action="store_true", help="warnings about how files were read are errors")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    parser.add_argument("--processes", type=int, default=world_size, help="number that a --dry-run plans for")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    setting: dict[str, Any] = {"metavar": "key.sub=value", "help": "settings to change; those after --set win"}
    parser.add_argument("overrides", nargs="*", **setting)
    parser.add_argument("--set", nargs="+", action="extend", default=[], **setting)
    with user_errors():
        argv, flags = original_settings(argv, "train_mvtec")
        arguments = parser.parse_intermixed_args(argv)
        set_strict(arguments.strict)
        config = load_config(arguments.config, [*flags, *arguments.overrides, *arguments.set])
        if config.own_llm is None and config.training.answers:
            fault = "is used as it is and can't be trained" if config.llm else "is needed to train answers"
            raise UserError(f"llm: a language model {fault}; training.answers=false trains maps alone")
        if arguments.dry_run:
            _dry_run(config, arguments.processes)
        else:
            _train(config, arguments.device)
    return 0


def _dry_run(config: ExperimentConfig, processes: int) -> None:
    """Prints the settings as YAML with the plan as comments, so that the output can be used as a config file."""
    from anomalygpt.training.dry_run import describe

    if processes < 1:
        raise UserError(f"--processes {processes}: expected 1 or more")
    if os.environ.get("RANK", "0") == "0":  # a launcher starts this once for each GPU
        print(to_yaml(config) + "\n".join(f"# {line}".rstrip() for line in describe(config, processes)))


def _train(config: ExperimentConfig, device: str) -> None:
    from anomalygpt import distributed

    process = distributed.start(device)
    # Only now, since it sets what DeepSpeed reads when any library first imports it.
    from anomalygpt.training.engine import report_device_errors
    from anomalygpt.training.loop import build_trainer

    logging.getLogger().setLevel(logging.INFO if process.is_main else logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if process.device.type == "cpu" and config.training.precision == "fp16":  # DeepSpeed can't, and says so late
        raise UserError("training.precision fp16 needs a GPU; training.precision=fp32 trains on this CPU")
    folder = resolve(config.training.output)
    with report_device_errors(), ExitStack() as held:
        trainer = build_trainer(config, process)
        distributed.on_main(process.is_main, lambda: held.enter_context(claimed(folder, "training.output")))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, trainer.request_stop)
        try:
            trainer.run()
        except OSError as error:
            advice = "make room, or choose another training.output, then start again"
            raise UserError(f"{folder}: can't be written ({error}); {advice}") from error
    distributed.stop()


if __name__ == "__main__":
    sys.exit(main())
