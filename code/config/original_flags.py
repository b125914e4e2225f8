"""The original's command-line flags and DeepSpeed's JSON, as this project's settings."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anomalygpt.config.load import load_config, names
from anomalygpt.errors import UserError

# Flag -> the setting it stands for; two name the file of a delta by a part in it, and an empty one has no effect here.
FLAGS = {
    "model": "", "stage": "", "data_path": "data.instructions.conversations",
    "image_root_path": "data.instructions.images", "imagebind_ckpt_path": "encoder.weights",
    "vicuna_ckpt_path": "llm.weights", "delta_ckpt_path": "lora", "anomalygpt_ckpt_path": "image_decoder",
    "max_tgt_len": "llm.max_target_tokens", "save_path": "training.output", "log_path": "training.log",
}  # fmt: skip
DEEPSPEED = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_clipping": "training.optimizer.clip_norm",
    "zero_optimization.stage": "training.zero_stage",
} | {f"optimizer.params.{name}": f"training.optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay")}
PARTS = {"lora": ["llama_proj", "lora"], "image_decoder": ["image_decoder", "prompt_learner"]}


def original_settings(argv: Sequence[str] | None, default: str) -> tuple[list[str], list[str]]:
    """Takes the original's flags out of a command line, and says on standard error what they stand for.

    Args:
        argv: None takes the program's own.
        default: the config where there are such flags and no ``--config``; for ``--save_path …/NAME`` it is the shipped
            experiment NAME, if there is one.

    Returns:
        The rest of the command line, and settings as ``key.sub=value``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*FLAGS, "deepspeed_config"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--deepspeed", action="store_true")
    given, rest = parser.parse_known_args(argv)
    values = {name: value for name, value in vars(given).items() if value}
    if not values:
        return rest, []
    config = next((after for flag, after in zip(rest, rest[1:], strict=False) if flag == "--config"), "")
    if not config and not any(word.startswith("--config=") for word in rest):
        saved = Path(given.save_path or "").name
        config = saved if saved in names() else default
        rest = ["--config", config, *rest]
    settings = {FLAGS[name]: value for name, value in values.items() if FLAGS.get(name)}
    deltas = [delta.model_dump(mode="json") for delta in load_config(config or default).deltas]
    for part, parts in PARTS.items():
        if path := settings.pop(part, None):
            old = [delta for delta in deltas if part in delta["parts"]] or [{"parts": parts}]
            deltas = [delta for delta in deltas if part not in delta["parts"]] + [{**old[0], "path": path}]
            settings["deltas"] = deltas
    unused = [f"--{name}" for name, value in values.items() if not FLAGS.get(name, "-")]
    if given.deepspeed_config:
        translated, others = _deepspeed(Path(given.deepspeed_config))
        settings |= translated
        unused += others
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    if os.environ.get("RANK", "0") == "0":
        shown = f"the original's flags stand for --config {config} {' '.join(overrides)}"
        print(f"{shown}; without effect here: {', '.join(unused) or 'none'}", file=sys.stderr)
    return rest, overrides


def _deepspeed(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings that a JSON file of DeepSpeed's states, and its keys that have no effect here."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        flat = dict(_flat(content))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--deepspeed_config {path}: not a JSON file of settings ({error})") from error
    settings = {ours: flat[key] for key, ours in DEEPSPEED.items() if flat.get(key, "auto") != "auto"}
    enabled = [kind for kind in ("fp16", "bf16") if flat.get(f"{kind}.enabled")]
    settings["training.precision"] = enabled[0] if enabled else "fp32"
    settings["training.offload_optimizer"] = flat.get("zero_optimization.offload_optimizer.device", "none") != "none"
    used = {key.partition(".")[0] for key in DEEPSPEED} | {"fp16", "bf16"}
    return settings, [key for key in content if key not in used]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
