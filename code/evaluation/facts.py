"""What a run's numbers depend on: as settings that two runs must share to be one, and in words for the report."""

import hashlib
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalygpt.config.load import resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.evaluation.measured import Setting
from anomalygpt.evaluation.pixels import BINS
from anomalygpt.evaluation.protocol import PAPER_SHOTS, Plan
from anomalygpt.evaluation.truth import CONNECTED, MASK_RULES, SATURATED, Resolution

NO_INFLUENCE = {"name", "data", "training"}  # parts of a config that an evaluation does not read


def fingerprint(config: ExperimentConfig, *, chat: bool, device: str) -> dict[str, Any]:
    """The model's settings, flat, and a digest of each delta: equal for runs whose numbers are alike.

    Args:
        chat: False leaves the language model out.
        device: ``cpu`` and ``cuda`` differ in the last digits.
    """
    excluded = NO_INFLUENCE | (set() if chat else {"llm"})
    settings = _flat(config.model_dump(mode="json", exclude=excluded))
    digests = {f"contents of {delta.path}": _digest(resolve(delta.path)) for delta in config.deltas}
    return {**settings, **digests, "chat": chat, "device": device.partition(":")[0]}


def data_fingerprint(kind: str, root: Path, resolution: Resolution, plan: Plan) -> dict[str, Any]:
    """The data's and the plan's part of it. More classes, shots or rounds may join a run later."""
    return {
        "--kind": kind,
        "--data": str(root.resolve()),
        "--resolution": resolution,
        "--reference-choice": plan.choice,
        "--seed": plan.seed,
        "bins of pixel scores": BINS,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _digest(path: Path) -> str | None:
    if not path.is_file():
        return None  # it is fetched, and then checked, when the model is built
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def references_in_words(plan: Plan) -> str:
    """How references were chosen."""
    if not any(plan.shots):
        return "none; text map"
    if plan.choice == "random":
        return "K good training photos a class, drawn at random in each round"
    return f"numbers {PAPER_SHOTS} x round + k, k < K, of the sorted good training photos, as in the paper" + (
        f" (K x round + k for K > {PAPER_SHOTS})" if max(plan.shots) > PAPER_SHOTS else ""
    )


def maps_in_words(settings: Sequence[Setting | None]) -> tuple[str, ...]:
    """How photos, maps and masks met, a line a distinct way."""
    lines = []
    for setting in settings:
        if setting is not None:
            pixels = "" if setting.mask_rule == "photo" else f", measured at {setting.map_side} x {setting.map_side}"
            lines.append(f"photos: {setting.geometry}{pixels}; {MASK_RULES[setting.mask_rule]}")
    return tuple(dict.fromkeys(lines))


def defects_in_words(settings: Sequence[Setting | None]) -> str:
    """What AUPRO counts as one defect."""
    return SATURATED if any(setting and setting.saturated for setting in settings) else CONNECTED


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
