"""Writes the model for machines without torch: ``python export.py --to onnx --out DIR`` (docs/deploy.md)."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from anomalygpt.config.load import load_config
from anomalygpt.errors import user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = ArgumentParser(description="Write encoder, decoder and comparison as ONNX or OpenVINO graphs.")
    add = parser.add_argument
    add("--to", choices=("onnx", "openvino"), required=True, help="format of the graphs")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the graphs, model.json and memory.npz")
    add("--references", type=Path, metavar="FILE", help="that predict.py --save-references wrote: become the memory")
    eight = "an encoder of 8 bits, whose ranges are measured on these photos or folders; needs nncf"
    add("--int8", nargs="+", type=Path, default=[], metavar="PHOTO", help=eight)
    add("--class-name", default="object", help="what the photos show, for encoders that read text")
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    arguments = parser.parse_args(argv)
    with user_errors():
        from anomalygpt.datasets.photos import configure, load_image
        from anomalygpt.datasets.records import find_photos
        from anomalygpt.inference.export import export, quantize
        from anomalygpt.inference.predictor import Predictor
        from anomalygpt.model.build import installed_config

        config = load_config(arguments.config or installed_config(), arguments.set)
        configure(config.data)
        files = [file for path in arguments.int8 for file in (find_photos(path) if path.is_dir() else [path])]
        photos = [load_image(file) for file in files]
        predictor = Predictor.from_config(config, "cpu", with_llm=False)
        predictor.set_references((), arguments.references)
        export(predictor, arguments.to, arguments.out, arguments.class_name)
        if photos:
            quantize(arguments.out, arguments.to, predictor, photos)
        print(*(f"{path}: {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(arguments.out.iterdir())), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
