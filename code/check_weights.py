"""Says what weight files and folders are, whether they are complete and fit, and what to do: `python check_weights.py`.

Without a path, it looks at all that an experiment needs. Exit code 0: nothing is wrong; 1: something is; 2: a mistake.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from anomalygpt.config.load import PRETRAINED, home, load_config, names, resolve
from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.errors import user_errors
from anomalygpt.files import read_yaml

PAPER_WEIGHTS = Path(__file__).parent / "weights" / "paper.yaml"
UNPROVEN = "llama_or_vicuna"  # may stand where Vicuna version 0 belongs, though its files can't prove that it is
LANGUAGE_MODELS = ("language_model", "vicuna_v0", "vicuna_v1", "llama", "llama_2", UNPROVEN)
WIDTHS = {"7b": 4096, "13b": 5120}


class Place(NamedTuple):
    """A setting that names a weight: the kinds that may be there, the best one first, their parts and width.

    ``fault`` says of a readable file why it is not the one; empty where it is.
    """

    setting: str
    path: Path
    kinds: tuple[str, ...]
    parts: tuple[str, ...] = ()
    width: int = 0
    fault: Callable[[Path], str] = lambda path: ""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each path, and below it what to do where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files or folders (default: all needed)")
    parser.add_argument("--config", default="imagebind_vicuna7b", help="the experiment that they are for")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="its settings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    with user_errors():
        places = {place.path: place for place in needed(load_config(arguments.config, arguments.set))}
        paths = arguments.paths or [*places]
        results = [examine(path, places.get(path.expanduser().resolve())) for path in paths]
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    for result in [] if arguments.json else results:
        print(f"{result['status']:8} {result['path']}: {'; '.join(filter(None, (result['what'], result['fault'])))}")
        if result["advice"]:
            print(f"{'':8} -> {result['advice']}")
    return int(any(result["status"] in ("wrong", "missing") for result in results))


def needed(config: ExperimentConfig) -> list[Place]:
    """The places of all weights that an experiment reads."""
    from anomalygpt.model.build import encoder_fault, is_hub_name, local_llm

    kind = {"dinov2": "vit"}.get(config.encoder.kind, config.encoder.kind)
    # Of timm's many models the names alone say what they are.
    kinds = (kind, "vit", "unknown") if kind == "timm" else (kind,)
    fault = partial(encoder_fault, config.encoder)
    places = [Place("encoder.weights", resolve(config.encoder.weights), kinds, fault=fault)]
    width = 0
    if config.llm and config.llm.weights:
        folder = local_llm(config.llm.weights)
        width = WIDTHS.get(folder.name.removesuffix("_v0"), 0)
        first = ("hub_model",) if is_hub_name(config.llm.weights) else ()
        kinds = ("vicuna_v0", UNPROVEN) if width else (*first, *LANGUAGE_MODELS)
        places.append(Place("llm.weights", folder, kinds, width=width))
    for delta in config.deltas:
        maps = not {"image_decoder", "prompt_learner", "states"}.isdisjoint(delta.parts)
        kinds = ("anomalygpt",) if maps else ("pandagpt", "anomalygpt", "lora")
        places.append(Place("deltas", resolve(delta.path), kinds, delta.parts, width))
    return places


def examine(path: Path, place: Place | None) -> dict[str, Any]:
    """What is at a path, against the place in a config that it is for, if any; the result is one of ``--json``."""
    from anomalygpt.model.checkpoint import probe

    found, table = probe(path), read_yaml(PAPER_WEIGHTS)
    status, misfit = "missing" if found.kind == "missing" else "ok", found.fault
    if place and status == "ok" and not misfit:
        absent = [part for part in place.parts if part not in found.parts]
        if found.kind not in place.kinds:
            misfit = f"{place.setting} needs {table[place.kinds[0]]['title']} here"
        elif place.width and found.width and place.width != found.width:
            misfit = f"{place.setting} needs one for a width of {place.width} here"
        elif absent:
            misfit = f"{place.setting} needs {', '.join(absent)} here, too"
        elif found.kind == UNPROVEN and place.width:
            status = "unsure"
        misfit = misfit or place.fault(path)
    if misfit or (found.kind in ("unknown", "vicuna_delta") and not (place and found.kind in place.kinds)):
        status = "wrong"
    kind = place.kinds[0] if place else found.kind.replace("vicuna_delta", "vicuna_v0")
    width = (place.width if place else 0) or found.width
    size = next((name for name, wide in WIDTHS.items() if wide == width), "7b")
    target = place.path if place else resolve(PRETRAINED) / "vicuna_ckpt" / f"{size}_v0"
    variant = target.parent.name if target.parent.name.startswith("train_") else "train_supervised"
    trained = resolve("runs") in target.parents and target.parent.name in names()
    kind = "run" if trained else target.parent.name if target.parent.name in table else kind
    entry = table.get(f"{kind}_{size}") or table.get(kind) or {"do": ""}
    advice = "" if status == "ok" else entry["do"].format(size=size, variant=variant, path=target)
    shown = path.relative_to(home()) if path.is_relative_to(home()) else path
    return {**asdict(found), "path": str(shown), "status": status, "fault": misfit, "advice": advice}


if __name__ == "__main__":
    raise SystemExit(main())
