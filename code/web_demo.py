"""The demo in a browser: ``python web_demo.py``, then open the address that it prints.

A photo on the left, its anomaly map in the middle, the conversation about it on the right. Good photos of the same part
are optional; with them the map shows what differs from the good ones.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalygpt.config.load import home, load_config
from anomalygpt.datasets.records import list_folders, list_images
from anomalygpt.errors import UserError, user_errors
from anomalygpt.inference.session import MAX_REFERENCES, Conversation, SharedModel, conversation_about

if TYPE_CHECKING:
    import gradio as gr

    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.inference.results import ImageResult

Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions

MAX_WAITING = 32  # questions; Gradio turns away the next one in its own words
MAX_REGIONS_SHOWN = 4
KEEP_SECONDS = 6 * 3600  # uploaded files and conversations
EXAMPLES = "images/examples"
PHOTO_HEIGHT = 366  # CSS pixels
SUGGESTED = ("Is there any anomaly in the image?", "Where is it?", "How many anomalies are there?", "How large is it?")
PENDING = "…"
HANDLER: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the chat shows PENDING instead
NO_VERDICT = '<p class="hint">Ask a question: the map and the verdict appear here.</p>'
TITLE = "# AnomalyGPT\nShows what is wrong with a part, and where, and answers questions about it."


def bubbles(history: Sequence[tuple[str, str]], pending: str | None = None) -> list[dict[str, str]]:
    """A history as messages of the chat. ``pending``: a question that has no answer yet."""
    messages = []
    for question, answer in [*history, (pending, PENDING)] if pending else history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def verdict_html(conversation: Conversation, result: "ImageResult") -> str:
    """The verdict, the score and the regions."""
    name, kind, source = PENDING, "open", ""
    if conversation.is_anomalous is not None:
        name, kind = ("Defect", "defect") if conversation.is_anomalous else ("Good", "good")
        source = f"Verdict from the {conversation.verdict_source}. "
    if result.reason:
        name, kind = "Can't tell", "open"
    numbers = f"{100 * result.probability:.0f} % probable, score {result.score:.3f}, threshold {result.threshold:.3f}"
    count = len(result.regions)
    marked = {0: "no region", 1: "1 region"}.get(count, f"{count} regions")
    shown = f"; the {MAX_REGIONS_SHOWN} largest:" if count > MAX_REGIONS_SHOWN else ":" if count else "."
    rows = "".join(
        f"<tr><td>{escape(region.place)}</td><td>{100 * region.area:.1f} %</td><td>{region.peak:.3f}</td></tr>"
        for region in result.regions[:MAX_REGIONS_SHOWN]
    )
    table = f'<table class="regions"><tr><th>place</th><th>area</th><th>peak</th></tr>{rows}</table>' if rows else ""
    return (
        f'<div class="verdict"><b class="{kind}">{name}</b><span>{numbers}</span></div>'
        f'<p class="hint">{source}The map marks {marked}{shown}</p>{table}'
    )


def ask(
    model: SharedModel,
    question: str | None,
    photo: str | None,
    references: Uploads,
    class_name: str | None,
    conversation: Conversation | None,
) -> Iterator[tuple[Any, ...]]:
    """Yields chat, overlay, verdict, question box and conversation: with the question, the map, then the answer."""
    import gradio as gr

    from anomalygpt.datasets.dialogue import detection_question

    try:
        conversation = conversation_about(photo, [path for path, _ in references or ()], class_name, conversation)
        text = (question or "").strip() or detection_question(conversation.class_name or None, with_description=False)
        yield bubbles(conversation.history, text), gr.skip(), gr.skip(), "", conversation
        result, overlay = model.encode(conversation, text)
        if conversation.is_over:
            return
        yield gr.skip(), overlay, verdict_html(conversation, result), gr.skip(), conversation
        earlier = list(conversation.history)
        for answer in model.stream(conversation, text):
            yield bubbles([*earlier, (text, answer)]), gr.skip(), gr.skip(), gr.skip(), conversation
        if not conversation.is_over:
            yield bubbles(conversation.history), gr.skip(), verdict_html(conversation, result), gr.skip(), conversation
    except UserError as error:
        gr.Warning(str(error))
        yield bubbles(conversation.history if conversation else ()), gr.skip(), gr.skip(), question, conversation


def start_over(photo: str | None, references: Uploads, conversation: Conversation | None) -> tuple[Any, ...]:
    """Chat, overlay, verdict and conversation: cleared if these are another photo or other references, else kept."""
    import gradio as gr

    if conversation:
        good = tuple(Path(path) for path, _ in references or ())
        if photo and (conversation.photo, conversation.references) == (Path(photo), good):
            return (gr.skip(),) * 4
        conversation.is_over = True
    return [], None, NO_VERDICT, None


def find_examples(folder: Path) -> list[tuple[str, list[str], str]]:
    """(photo, references, class name) of each subfolder; photos named ``good…`` are the references."""
    examples = []
    for part in list_folders(folder) if folder.is_dir() else []:
        photos = list_images(part)
        good = [str(photo) for photo in photos if photo.stem.startswith("good")]
        others = [str(photo) for photo in photos if not photo.stem.startswith("good")]
        examples += [(others[0], good, part.name.replace("_", " "))] if others else []
    return examples


def build_demo(
    new_predictor: "Callable[[], Predictor]", subtitle: str = "", examples: Path | None = None
) -> "gr.Blocks":
    """The page. ``new_predictor``: see :class:`SharedModel`; ``examples``: a folder for :func:`find_examples`."""
    import gradio as gr

    with gr.Blocks(title="AnomalyGPT", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        conversation = gr.State(None, time_to_live=KEEP_SECONDS)
        gr.Markdown(f"{TITLE} {subtitle}")
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                inputs = _input_column(find_examples(examples) if examples else [])
            with gr.Column(scale=4, min_width=300):
                overlay = gr.Image(
                    label="Anomaly map", interactive=False, height=PHOTO_HEIGHT, buttons=["fullscreen"], elem_id="map"
                )
                summary = gr.HTML(NO_VERDICT, elem_id="summary")
            with gr.Column(scale=5, min_width=340):
                hint = "Upload a photo or click an example, then ask."
                chat = gr.Chatbot(
                    label="Conversation", height=530, placeholder=hint, buttons=["copy_all"], elem_id="chat"
                )
                _connect(SharedModel(new_predictor), inputs, [chat, overlay, summary], conversation)
    return demo


def _input_column(examples: Sequence[tuple[str, list[str], str]]) -> tuple["gr.Image", "gr.Gallery", "gr.Textbox"]:
    """Photo, references and class name, filled by a click on an example."""
    import gradio as gr

    photo = gr.Image(label="Photo", sources=["upload"], height=PHOTO_HEIGHT, elem_id="photo")
    # The uploaded file itself, for load_image. (Gradio's own reader ends in a traceback on a broken file, and cuts
    # 16 bits off. A subclass would make it write a .pyi file beside this one.)
    photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign, assignment]
    row = gr.Dataset(
        label="Examples: " + ", ".join(class_name for _, _, class_name in examples),
        components=[gr.Image(visible=False)],
        samples=[[photo] for photo, _, _ in examples],
        type="index",
        layout="gallery",
        elem_id="examples",
        render=bool(examples),
    )
    label = f"Good photos of the same part (optional, up to {MAX_REFERENCES})"
    references = gr.Gallery(
        label=label, file_types=["image"], columns=MAX_REFERENCES, fit_columns=False, height=150, elem_id="references"
    )
    class_name = gr.Textbox(label="What is it? (optional)", placeholder="washer, circuit board, carpet …", max_lines=1)
    if examples:
        row.click(lambda number: examples[number], row, [photo, references, class_name], queue=False, **HANDLER)
    return photo, references, class_name


def _connect(model: SharedModel, inputs: Sequence[Any], shown: Sequence[Any], conversation: "gr.State") -> None:
    """Adds the question box, and connects it, the suggestions and the inputs with the functions above."""
    import gradio as gr

    with gr.Row(equal_height=True):
        question = gr.Textbox(
            show_label=False, container=False, scale=5, max_lines=3, placeholder=SUGGESTED[0], elem_id="question"
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
    with gr.Row():
        suggestions = [gr.Button(text, size="sm", min_width=150) for text in SUGGESTED]
    photo, references, _ = inputs
    given = [*inputs, conversation]
    one_at_a_time: dict[str, Any] = {
        "outputs": [*shown, question, conversation],
        "concurrency_id": "model",
        "trigger_mode": "multiple",  # a question that comes while another is answered waits
        **HANDLER,
    }
    asking = [gr.on([send.click, question.submit], partial(ask, model), [question, *given], **one_at_a_time)]
    asking += [button.click(partial(ask, model, button.value), given, **one_at_a_time) for button in suggestions]
    clearing = {"outputs": [*shown, conversation], "cancels": asking, "queue": False, **HANDLER}
    shown[0].clear(partial(start_over, None, None), conversation, **clearing)
    for changed in (photo.change, references.change):
        changed(start_over, [photo, references, conversation], **clearing)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns when the demo is stopped."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Both are read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with user_errors():
        config = load_config(arguments.config or _default_config(), arguments.set)
        require_address(arguments.host, arguments.port)  # now, because loading the model may take minutes
        print(f"Loading {config.name} …", flush=True)
        from anomalygpt.datasets.photos import configure
        from anomalygpt.inference.predictor import Predictor  # here, because it takes seconds

        configure(config.data)
        predictor = Predictor.from_config(config, arguments.device)
        demo = build_demo(predictor.without_references, f"Model: {config.name}.", home() / EXAMPLES)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemctl stop and docker stop send it
        serve(demo, arguments.host, arguments.port, arguments.share)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detect defects of parts in photos, and ask about them, in a browser.")
    add = parser.add_argument
    add("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="a public link, through Gradio's servers")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    add("--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change")
    return parser.parse_args(argv)


def _default_config() -> str:
    """What is installed; prints why when that is not the paper's model."""
    from anomalygpt.model.build import PAPER, installed_config, missing_weights

    name = installed_config()
    if name != PAPER:
        print(f"Using {name}: for {PAPER} these are missing (pretrained_ckpt/README.md says where to get them):")
        for path in missing_weights(load_config(PAPER)):
            print(f"  {path.relative_to(home()) if path.is_relative_to(home()) else path}")
    return name


def require_address(host: str, port: int | None) -> None:
    """Raises :class:`UserError` where no page can be served: no such host, or the port is in use or not allowed."""
    try:
        socket.create_server((host, port or 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        where = f"--host {host} --port {port}" if port else f"--host {host}"
        raise UserError(f"{where}: no page can be served there ({error})") from error


def serve(demo: "gr.Blocks", host: str, port: int | None, share: bool) -> None:
    """Shows the page at an address, which is printed, until Ctrl-C; raises UserError where no port is free."""
    import gradio as gr
    from gradio.tunneling import CURRENT_TUNNELS

    # Comes with Gradio; the theme's own choice, weight 600, lacks most letters.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=[font, "system-ui", "sans-serif"])
    demo.queue(default_concurrency_limit=1, max_size=MAX_WAITING)
    try:
        demo.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port or None,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(home() / EXAMPLES)],
            max_file_size="50mb",
            theme=theme,
            css_paths=Path(__file__).with_suffix(".css"),
            footer_links=[],
        )
        # A browser can't open the wildcard address.
        url = str(demo.local_url).rstrip("/").replace("[::]", "localhost")
        print(f"Open {url}" + (f" or {demo.share_url}" if demo.share_url else ""), flush=True)
        while demo.is_running:
            time.sleep(1)
    except OSError as error:
        why = str(error).split(". ")[0]  # Gradio goes on with advice for programmers
        raise UserError(f"no page can be served on {host} ({why}); name another --port") from error
    except KeyboardInterrupt:
        pass
    finally:
        # Gradio's own block_thread leaves the streams of open pages: the server waits for them, and uploads stay.
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        demo.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
