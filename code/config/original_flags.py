"""The original's command-line flags and DeepSpeed's JSON, as this project's settings."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomalygpt.config.load import load_config, names
from anomalygpt.errors import reading

# Flag -> the setting it stands for; two name the file of a delta by a part in it, and an empty one has no effect here.
FLAGS = {
    "model": "", "stage": "", "data_path": "data.instructions.conversations",
    "image_root_path": "data.instructions.images", "imagebind_ckpt_path": "encoder.weights",
    "vicuna_ckpt_path": "llm.weights", "delta_ckpt_path": "lora", "anomalygpt_ckpt_path": "image_decoder",
    "max_tgt_len": "llm.max_target_tokens", "save_path": "training.output", "log_path": "training.log",
}  # fmt: skip
PARTS = {"lora": ["llama_proj", "lora"], "image_decoder": ["image_decoder", "prompt_learner"]}
DEEPSPEED = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_clipping": "training.optimizer.clip_norm",
    "zero_optimization.stage": "training.zero_stage",
} | {f"optimizer.params.{name}": f"training.optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay")}


def original_settings(argv: Sequence[str] | None, default: str) -> tuple[list[str], list[str]]:
    """A command line (None: the program's own) -> all but the original's flags, and these as ``key.sub=value``.

    Says on standard error what they stand for. ``default`` is the config where there are such flags, no ``--config``,
    and no shipped one named by ``--save_path``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in (*FLAGS, "deepspeed_config", "config"):
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
    if given.deepspeed_config:
        translated, others = _deepspeed(Path(given.deepspeed_config))
        settings, unused = settings | translated, unused + others
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    if os.environ.get("RANK", "0") == "0":
        shown = f"the original's flags stand for --config {config} {' '.join(overrides)}"
        print(f"{shown}; without effect here: {', '.join(unused) or 'none'}", file=sys.stderr)
    return rest, overrides


def _deepspeed(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings that a JSON file of DeepSpeed's states, and its keys that have no effect here."""
    import pandas as pd  # here, so that --help does not wait for it

    with reading(path, "DeepSpeed's JSON"):
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    values = pd.json_normalize([content]).to_dict("records")[0]  # by dotted key
    settings = {ours: values[key] for key, ours in DEEPSPEED.items() if values.get(key, "auto") != "auto"}
    settings["training.precision"] = next((kind for kind in ("fp16", "bf16") if values.get(f"{kind}.enabled")), "fp32")
    settings["training.offload_optimizer"] = values.get("zero_optimization.offload_optimizer.device") == "cpu"
    used = {key.partition(".")[0] for key in DEEPSPEED} | {"fp16", "bf16"}
    return settings, [key for key in content if key not in used]
