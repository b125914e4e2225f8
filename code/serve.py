"""The server: ``python serve.py``, then ``curl -F photo=@part.png http://127.0.0.1:8000/v1/inspect``.

Inspection, parts that are taught once and used by name, and OpenAI's chat completions: docs/serving.md.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from anomalygpt.config.load import load_config
from anomalygpt.errors import user_errors
from anomalygpt.files import listen

KEYS = "ANOMALYGPT_API_KEYS"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns when the server is stopped, after what runs has ended."""
    parser = argparse.ArgumentParser(description="Detect defects of parts in photos, and ask about them, over HTTP.")
    add = parser.add_argument
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--host", default="127.0.0.1", help=f"0.0.0.0 lets other machines in: set {KEYS} (default: %(default)s)")
    add("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    add("--parts", type=Path, default=Path("parts"), metavar="DIR", help="folder of the parts (default: %(default)s)")
    add("--max-mb", type=float, default=64, help="of one request (default: %(default)s)")
    add("--max-megapixels", type=float, default=50, help="of one photo (default: %(default)s)")
    add("--rate", type=float, default=0, help="requests per minute and client (default: 0, any number)")
    add("--max-waiting", type=int, default=64, help="requests at once, further ones get 503 (default: %(default)s)")
    add("--no-chat", action="store_true", help="no language model is loaded")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    arguments = parser.parse_args(argv)
    with user_errors():
        from anomalygpt.model.build import installed_config

        config = load_config(arguments.config or installed_config(), arguments.set)
        listening = listen(arguments.host, arguments.port)  # now, because loading the model may take minutes
        keys = tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
        if not keys and arguments.host not in ("127.0.0.1", "::1", "localhost"):
            print(f"warning: --host {arguments.host} without {KEYS}: anyone who reaches it may use it", file=sys.stderr)
        print(f"Loading {config.name} …", flush=True)
        import uvicorn

        from anomalygpt.datasets.photos import configure
        from anomalygpt.inference.predictor import Predictor
        from anomalygpt.serving.app import Limits, build_app

        configure(config.data)
        predictor = Predictor.from_config(config, arguments.device, with_llm=not arguments.no_chat)
        limits = Limits(keys, 1e6 * arguments.max_mb, arguments.max_megapixels, arguments.rate, arguments.max_waiting)
        app = build_app(predictor, arguments.parts, limits)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"Serving {config.name} on http://{host}:{listening.getsockname()[1]} (/docs describes it)", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it anew when all has ended
        with suppress(KeyboardInterrupt):
            server.run([listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
