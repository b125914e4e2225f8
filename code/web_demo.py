"""The demo in a browser: ``python web_demo.py``, then open the address that it prints.

One photo with its verdict, map and conversation; a part that is taught; many photos at once: docs/page.md.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from anomalygpt.config.load import home, load_config, names
from anomalygpt.config.original_flags import original_settings
from anomalygpt.errors import user_errors
from anomalygpt.files import listen

EXAMPLES = "images/examples"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns when the demo is stopped."""
    with user_errors():
        argv, flags = original_settings(argv, "imagebind_vicuna7b")
    parser = argparse.ArgumentParser(description="Detect defects of parts in photos, and ask about them, in a browser.")
    add = parser.add_argument
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="a public link, through Gradio's servers")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    arguments = parser.parse_args(argv)
    # Both are read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with user_errors():
        from anomalygpt.model.build import installed_config, missing_weights

        config = load_config(arguments.config or installed_config(), [*flags, *arguments.set])
        listen(arguments.host, arguments.port).close()  # now, because loading the model may take minutes
        print(f"Loading {config.name} …", flush=True)
        from anomalygpt.datasets.photos import configure
        from anomalygpt.inference.predictor import Predictor  # here, because it takes seconds
        from anomalygpt.inference.session import SharedModel
        from anomalygpt.serving.page import build_page, serve

        configure(config.data)

        def load(name: str) -> Any:
            chosen = config if name == config.name else load_config(name)
            return Predictor.from_config(chosen, arguments.device).without_references

        shipped = [name for name in names() if not name.startswith("train_") and name != config.name]
        installed = [name for name in shipped if not missing_weights(load_config(name), all_absent=True)]
        examples = home() / EXAMPLES
        demo = build_page(SharedModel(load(config.name), config.name, load), examples, [config.name, *installed])
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemctl stop and docker stop send it
        serve(demo, arguments.host, arguments.port, arguments.share, examples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
