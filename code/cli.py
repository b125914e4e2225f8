"""``anomalygpt COMMAND …``: the one command of an installed package."""

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "demo": ("web_demo", "the page in a browser"),
    "predict": ("predict", "inspect photos"),
    "serve": ("serve", "inspect photos sent by HTTP"),
    "train": ("train", "train a model"),
    "eval": ("run_eval", "measure a model on a data set"),
    "mmad": ("run_mmad", "answer MMAD's multiple-choice questions"),
    "fetch": ("fetch_weights", "download the default weights"),
    "export": ("export", "write the model as ONNX or OpenVINO graphs"),
    "vicuna": ("prepare_vicuna", "make Vicuna of LLaMA and its delta"),
    "check": ("check_weights", "say what weight files are, and whether they fit"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: runs a command's own ``main`` with what follows its name."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        sys.argv[0] = f"anomalygpt {name}"
        return int(import_module(f"anomalygpt.{COMMANDS[name][0]}").main(arguments) or 0)
    print("usage: anomalygpt COMMAND …; `anomalygpt COMMAND --help` explains one")
    print(*(f"  {command:8} {what}" for command, (_, what) in COMMANDS.items()), sep="\n")
    return 0 if name in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
