"""Trains AnomalyGPT on simulated defects: ``python train.py --config train_compact``, or ``deepspeed train.py …``.

Any setting can be changed on the command line: ``training.steps=100 training.optimizer.lr=5e-4``.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anomalygpt.config.load import ConfigError, home, load_config, resolve, save_config, to_yaml
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import user_errors

logger = logging.getLogger("anomalygpt.train")

RECORDED_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "timm", "numpy", "opencv-python-headless")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when the run reached its last step."""
    arguments = _parse(argv)
    with user_errors():
        config = load_config(arguments.config, arguments.overrides)
        if config.llm is None and config.training.answers:
            raise ConfigError("llm: training answers needs a language model; training.answers=false trains maps alone")
        if arguments.dry_run:
            print(to_yaml(config))
            return 0
        _train(config, arguments.device)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train AnomalyGPT.", epilog="Resumes by itself where a run stopped.")
    parser.add_argument("--config", required=True, help="a shipped experiment's name, or a YAML file")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    return parser.parse_intermixed_args(argv)


def _train(config: ExperimentConfig, device: str) -> None:
    from anomalygpt.datasets.build import build_simulated
    from anomalygpt.datasets.transforms import ImageTransform
    from anomalygpt.model.build import build_model, trainable_parts
    from anomalygpt.training import distributed
    from anomalygpt.training.engine import deepspeed_config, start_engine
    from anomalygpt.training.loop import Data, Trainer

    process = distributed.start(device)
    _set_up_logging(process.is_main)
    distributed.seed_everything(config.seed)
    settings = config.training
    model = build_model(config, process.device, speaks=settings.answers)
    groups = trainable_parts(model, settings.trainable)
    spec = model.encoder.spec
    train, validation = build_simulated(config.data, ImageTransform(spec.size, spec.mean, spec.std), config.seed)
    steps = settings.steps or max(1, settings.epochs * len(train) // settings.batch_size)
    for part, parameters in groups.items():
        logger.info("training %-15s %12s parameters", part, f"{sum(p.numel() for p in parameters):,}")
    logger.info("%d training pairs, %d steps of %d pairs", len(train), steps, settings.batch_size)

    folder = resolve(settings.output)
    if process.is_main:
        _record_run(config, folder)
    engine = start_engine(model, deepspeed_config(settings, steps, process.world_size))
    Trainer(engine, Data(train, validation), config, process, folder, steps).run()
    if process.is_main:
        _export(engine.module, config, folder)
    distributed.stop()


def _set_up_logging(is_main: bool) -> None:
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(message)s", stream=sys.stderr)
    for noisy in ("DeepSpeed", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _record_run(config: ExperimentConfig, folder: Path) -> None:
    """What it takes to make the run again: settings, commit, package versions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.yaml")
    facts = {
        "commit": _commit(),
        "command": sys.argv,
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
    }
    (folder / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")


def _commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _export(model: Any, config: ExperimentConfig, folder: Path) -> None:
    """The trained tensors in half precision, as safetensors with the config inside and in the released format."""
    import torch

    from anomalygpt.model.checkpoint import delta_tensors, save_tensors

    tensors = delta_tensors(model, config.training.trainable, torch.float16)
    save_tensors(tensors, folder / "model.safetensors", {"config": to_yaml(config)})
    save_tensors(tensors, folder / "pytorch_model.pt")
    logger.info("wrote %s and pytorch_model.pt", folder / "model.safetensors")


if __name__ == "__main__":
    sys.exit(main())
