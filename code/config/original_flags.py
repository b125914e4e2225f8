"""The original's command-line flags, as this project's settings."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.config.load import load_config, names

# Flag -> the setting it stands for; two name the file of a delta by a part in it, and an empty one has no effect here.
FLAGS = {
    "model": "", "stage": "", "deepspeed_config": "", "data_path": "data.instructions.conversations",
    "image_root_path": "data.instructions.images", "imagebind_ckpt_path": "encoder.weights",
    "vicuna_ckpt_path": "llm.weights", "delta_ckpt_path": "lora", "anomalygpt_ckpt_path": "image_decoder",
    "max_tgt_len": "llm.max_target_tokens", "save_path": "training.output", "log_path": "training.log",
}  # fmt: skip
PARTS = {"lora": ["llama_proj", "lora"], "image_decoder": ["image_decoder", "prompt_learner"]}


def original_settings(argv: Sequence[str] | None, default: str) -> tuple[list[str], list[str]]:
    """Takes the original's flags out of a command line, and says on standard error what they stand for.

    Args:
        argv: None takes the program's own.
        default: the config where there are such flags, no ``--config``, and no shipped one named by ``--save_path``.

    Returns:
        The rest of the command line, and settings as ``key.sub=value``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*FLAGS, "config"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--deepspeed", action="store_true")
    given, rest = parser.parse_known_args(argv)
    values = {name: value for name, value in vars(given).items() if value and name != "config"}
    saved = Path(given.save_path or "").name
    config = given.config or ((saved if saved in names() else default) if values else "")
    rest = ["--config", config, *rest] if config else rest
    if not values:
        return rest, []
    settings = {FLAGS[name]: value for name, value in values.items() if FLAGS.get(name)}
    unused = [f"--{name}" for name in values if FLAGS.get(name) == ""]
    deltas = [delta.model_dump(mode="json") for delta in load_config(config).deltas]
    for part, parts in PARTS.items():
        if path := settings.pop(part, None):
            if not any(part in delta["parts"] for delta in deltas):
                deltas.append({"parts": parts})
            next(delta for delta in deltas if part in delta["parts"])["path"] = path
            settings["deltas"] = deltas
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    if os.environ.get("RANK", "0") == "0":
        shown = f"the original's flags stand for --config {config} {' '.join(overrides)}"
        print(f"{shown}; without effect here: {', '.join(unused) or 'none'}", file=sys.stderr)
    return rest, overrides
