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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from anomalygpt.config.load import home, load_config
from anomalygpt.datasets.records import DatasetError, list_folders, list_images
from anomalygpt.errors import UserError, user_errors

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from anomalygpt.config.schema import ExperimentConfig
    from anomalygpt.inference.predictor import Look, Prediction, Predictor

NewPredictor = Callable[[], "Predictor"]
Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions

PORT = 7860
PORTS_TRIED = 100
MOST_REFERENCES = 4
MOST_REMEMBERED = 8  # sessions; what was encoded for one takes 60 MB with the compact model, hundreds with ImageBind
MOST_WAITING = 32  # questions; Gradio turns away the next one in its own words
LONGEST_SIDE = 1024  # of the overlay that goes to the browser, in pixels
REGIONS_SHOWN = 4
LARGEST_UPLOAD = "50mb"
KEPT_SECONDS = 6 * 3600  # uploaded files, and what is remembered of a browser that went away
EXAMPLES = "images/examples"
PHOTO_HEIGHT = 366  # in CSS pixels
CHAT_HEIGHT = 530
SUGGESTIONS = (
    "Is there any anomaly in the image?",
    "Where is it?",
    "How many anomalies are there?",
    "How large is it?",
)
PENDING = "…"
MAP_ONLY = "This model draws maps, but has no language model to answer with: see the map and its verdict."
NO_VERDICT = '<p class="hint">Ask a question: the map and the verdict appear here.</p>'

TITLE = """# AnomalyGPT
Shows what is wrong with a part, and where, and answers questions about it."""
STYLE = """
.gradio-container { max-width: 1440px !important; }
.verdict { display: flex; align-items: center; gap: 0.75rem; flex-wrap: wrap; padding: 0.25rem 0 0.5rem; }
.verdict b { color: white; border-radius: 0.4rem; padding: 0.15rem 0.8rem; font-size: 1.1rem; }
.verdict b.defect { background: #c62828; }
.verdict b.good { background: #2e7d32; }
.verdict b.open { background: #757575; }
#summary .regions { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
#summary .regions, #summary .regions * { border: none !important; }
#summary .regions th, #summary .regions td { text-align: left; padding: 0.25rem 0.4rem; }
#summary .regions td { border-top: 1px solid var(--border-color-primary) !important; }
.hint { color: var(--body-text-color-subdued); }
#examples .gallery-item { height: 76px; width: 76px; }
#examples .gallery-item img { height: 100%; width: 100%; object-fit: cover; }
/* Gradio's labels lie on the pictures; these lie above them. */
#photo .image-frame, #map .image-frame { box-sizing: border-box; padding-top: 28px; }
#references .grid-container { padding-top: 26px; }
"""

# One model serves every browser, one question at a time.
MODEL_IN_USE = threading.Lock()
# The sessions that hold encoded photos, by id, the one that asked last at the end; changed under MODEL_IN_USE. Weak:
# every reload of the page is a new session, and Gradio lets go of the old ones.
REMEMBERED: "WeakValueDictionary[int, Session]" = WeakValueDictionary()


# -- the conversation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What the left side of the page holds: a photo, good photos, and what the part is called ("" for no name)."""

    photo: Path
    references: tuple[Path, ...] = ()
    class_name: str = ""


@dataclass
class Talk:
    """The conversation about one photo, which is encoded once.

    Attributes:
        look: None until the photo was encoded, and after it was forgotten.
        picture: the overlay, small enough for a browser.
        history: (question, answer) pairs.
        found: what the first answer says; "no" to a later "is it large?" is no verdict.
        class_name: what the part is taken for; set with the first look.
    """

    inputs: Inputs
    look: "Look | None" = None
    picture: "Image.Image | None" = None
    history: list[tuple[str, str]] = field(default_factory=list)
    found: "Prediction | None" = None
    class_name: str = ""


@dataclass
class Session:
    """One browser's. Everybody shares the model; references and conversation are its own.

    Attributes:
        predictor: remembers the references.
        references: the files that it remembers.
        talk: None when nothing was asked about what the page holds now.
    """

    predictor: "Predictor"
    references: tuple[Path, ...] = ()
    talk: Talk | None = None

    def talk_about(self, inputs: Inputs) -> Talk:
        """The conversation so far about these inputs; a new one where any of them changed."""
        if self.talk is None or self.talk.inputs != inputs:
            self.talk = Talk(inputs)
        return self.talk

    def look(self, talk: Talk, question: str) -> None:
        """Encodes the photo of a new conversation, and references that are new; what was forgotten, once more.

        Args:
            question: may name the part where the page does not.

        Raises:
            UserError: a file can't be read.
        """
        from anomalygpt.datasets.dialogue import class_in_prompt
        from anomalygpt.inference.visualize import overlay

        if talk.look is not None:
            return
        inputs = talk.inputs
        photo = _read(inputs.photo)
        if inputs.references != self.references:
            self.predictor.set_references([_read(path) for path in inputs.references])
            self.references = inputs.references
        rule = self.predictor.settings.text_class_rule
        named = talk.class_name or inputs.class_name or class_in_prompt(question, rule)
        talk.class_name = named
        talk.look = self.predictor.look(photo, named)
        talk.picture = overlay(photo, talk.look.map, talk.look.threshold, talk.look.regions)
        talk.picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))

    def answer(self, talk: Talk, question: str) -> None:
        """Adds the answer to the conversation, which must have had its look."""
        assert talk.look is not None
        found = self.predictor.ask(talk.look, question, talk.history)
        # The page shows the first answer's verdict; the map, as large as the photo, is the look's alone to hold.
        talk.found = talk.found or replace(found, image=replace(found.image, map=found.image.map[:0].copy()))
        talk.history.append((question, found.answer if self.predictor.model.speaks else MAP_ONLY))

    def forget(self) -> None:
        """Lets go of what was encoded. The photos stay, so that the next question goes on after encoding them again."""
        self.predictor.set_references([])
        self.references = ()
        if self.talk is not None:
            self.talk.look = None


def remember(session: Session) -> None:
    """Makes a session the latest of those that hold encoded photos; the oldest beyond ``MOST_REMEMBERED`` forget."""
    REMEMBERED.pop(id(session), None)
    REMEMBERED[id(session)] = session
    for oldest in list(REMEMBERED.values())[:-MOST_REMEMBERED]:
        del REMEMBERED[id(oldest)]
        oldest.forget()


def _read(path: Path) -> "Image.Image":
    from anomalygpt.datasets.transforms import load_image

    try:
        return load_image(path)
    except DatasetError as error:  # it names the server's folder, which is none of the browser's business
        raise UserError(str(error).replace(str(path), path.name)) from error


def read_inputs(photo: str | None, references: Uploads, class_name: str | None) -> Inputs:
    """What the page sends, checked.

    Raises:
        UserError: there is no photo, or there are too many references.
    """
    if not photo:
        raise UserError("There is no photo yet: upload one, or click an example.")
    good = tuple(Path(path) for path, _ in references or ())
    if len(good) > MOST_REFERENCES:
        raise UserError(f"{len(good)} good photos are too many: keep {MOST_REFERENCES} at most.")
    return Inputs(Path(photo), good, " ".join((class_name or "").split()))


# -- what the page shows ----------------------------------------------------------------------------------------------


def bubbles(history: Sequence[tuple[str, str]], pending: str | None = None) -> list[dict[str, str]]:
    """A history as the chat shows it. ``pending``: a question that has no answer yet."""
    pairs = [*history, (pending, PENDING)] if pending else history
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def verdict(talk: Talk) -> str:
    """The verdict, the score and the regions, as HTML."""
    look, found = talk.look, talk.found
    if look is None:
        return NO_VERDICT
    name, kind, source = PENDING, "open", ""
    if found is not None:
        name, kind = ("Defect", "defect") if found.is_anomalous else ("Good", "good")
        source = f"Verdict from the {found.verdict_from}{_doubt(found)}. "
    numbers = f"{100 * look.probability:.0f} % probable, score {look.score:.3f}, threshold {look.threshold:.3f}"
    head = f'<div class="verdict"><b class="{kind}">{name}</b><span>{numbers}</span></div>'
    return f'{head}<p class="hint">{source}{_regions_in_words(look)}</p>{_region_table(look)}'


def _doubt(found: "Prediction") -> str:
    """Whether the language model and the score agree, as the verdict's sentence goes on."""
    if found.answer_agrees:
        return ""
    return ", which the score contradicts" if found.verdict_from == "answer" else "; the language model disagreed"


def _regions_in_words(look: "Look") -> str:
    count = len(look.regions)
    marked = "no region" if count == 0 else "1 region" if count == 1 else f"{count} regions"
    shown = f"; the {REGIONS_SHOWN} largest:" if count > REGIONS_SHOWN else ":" if count else "."
    return f"The map marks {marked}{shown}"


def _region_table(look: "Look") -> str:
    rows = "".join(
        f"<tr><td>{escape(region.position)}</td><td>{100 * region.area:.1f} %</td><td>{region.peak:.3f}</td></tr>"
        for region in look.regions[:REGIONS_SHOWN]
    )
    return f'<table class="regions"><tr><th>place</th><th>area</th><th>peak</th></tr>{rows}</table>' if rows else ""


# -- what the page does -----------------------------------------------------------------------------------------------


def ask(
    new_predictor: NewPredictor,
    question: str | None,
    photo: str | None,
    references: Uploads,
    class_name: str | None,
    session: Session | None,
) -> Iterator[tuple[Any, ...]]:
    """Answers a question step by step: the question at once, then the map, then the answer.

    Yields:
        chat, overlay, verdict, question box, session.
    """
    import gradio as gr

    from anomalygpt.datasets.dialogue import detection_question

    session = session or Session(new_predictor())
    try:
        inputs = read_inputs(photo, references, class_name)
        asked = (question or "").strip() or detection_question(inputs.class_name or None, with_description=False)
        talk = session.talk_about(inputs)
        yield bubbles(talk.history, asked), gr.skip(), gr.skip(), "", session
        with MODEL_IN_USE:
            remember(session)
            session.look(talk, asked)
        if session.talk is talk:  # else the photo was replaced meanwhile, and the page shows the new one
            yield gr.skip(), talk.picture, verdict(talk), gr.skip(), session
            with MODEL_IN_USE:
                session.answer(talk, asked)
        if session.talk is talk:
            yield bubbles(talk.history), gr.skip(), verdict(talk), gr.skip(), session
    except UserError as error:
        gr.Warning(str(error))
        yield bubbles(session.talk.history if session.talk else ()), gr.skip(), gr.skip(), question, session


def start_over(photo: str | None, references: Uploads, session: Session | None) -> tuple[Any, ...]:
    """Clears the conversation when the photo or the references are others than it is about.

    Returns:
        chat, overlay, verdict, session.
    """
    import gradio as gr

    talk = session.talk if session else None
    good = tuple(Path(path) for path, _ in references or ())
    if talk and photo and (talk.inputs.photo, talk.inputs.references) == (Path(photo), good):
        return (gr.skip(),) * 4
    if session:
        session.talk = None
    return [], None, NO_VERDICT, session


# -- the page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A photo to click on, with its good photos."""

    class_name: str
    photo: Path
    references: tuple[Path, ...]


def find_examples(folder: Path) -> list[Example]:
    """One example a subfolder: its photos called ``good…`` are the references, the first other one is the photo."""
    found = []
    for part in list_folders(folder) if folder.is_dir() else []:
        photos = list_images(part)
        good = tuple(photo for photo in photos if photo.stem.startswith("good"))
        others = [photo for photo in photos if photo not in good]
        found += [Example(part.name.replace("_", " "), others[0], good)] if others else []
    return found


@dataclass(frozen=True)
class Page:
    """The parts of the page that questions and answers go through."""

    photo: "gr.Image"
    references: "gr.Gallery"
    class_name: "gr.Textbox"
    picture: "gr.Image"
    summary: "gr.HTML"
    chat: "gr.Chatbot"
    question: "gr.Textbox"
    send: "gr.Button"
    suggestions: list["gr.Button"]
    session: "gr.State"


def build_demo(new_predictor: NewPredictor, subtitle: str = "", examples: Path | None = None) -> "gr.Blocks":
    """The page.

    Args:
        new_predictor: makes a browser's own predictor around the shared model; must be cheap.
        subtitle: which model answers.
        examples: a folder as :func:`find_examples` reads it; without any, the page has no examples.
    """
    import gradio as gr

    with gr.Blocks(title="AnomalyGPT", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as demo:
        session = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(f"{TITLE} {subtitle}")
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                photo, references, class_name = _left_side(find_examples(examples) if examples else [])
            with gr.Column(scale=4, min_width=300):
                picture = gr.Image(
                    label="Anomaly map", interactive=False, height=PHOTO_HEIGHT, buttons=["fullscreen"], elem_id="map"
                )
                summary = gr.HTML(NO_VERDICT, elem_id="summary")
            with gr.Column(scale=5, min_width=340):
                chat, question, send, suggestions = _right_side()
        page = Page(photo, references, class_name, picture, summary, chat, question, send, suggestions, session)
        _connect(page, new_predictor)
    return demo


def _left_side(examples: Sequence[Example]) -> tuple["gr.Image", "gr.Gallery", "gr.Textbox"]:
    import gradio as gr

    photo = gr.Image(label="Photo", sources=["upload"], height=PHOTO_HEIGHT, elem_id="photo")
    # The file as it was uploaded, for the one reader of all kinds. (Gradio's own ends in a traceback on a broken
    # file, and cuts 16 bits off. A subclass would make it write a .pyi file beside this one.)
    photo.preprocess = _uploaded_file  # type: ignore[method-assign, assignment]
    row = _example_row(examples) if examples else None
    references = gr.Gallery(
        label=f"Good photos of the same part (optional, up to {MOST_REFERENCES})",
        type="filepath",
        file_types=["image"],
        columns=MOST_REFERENCES,
        fit_columns=False,
        height=150,
        elem_id="references",
    )
    class_name = gr.Textbox(label="What is it? (optional)", placeholder="washer, circuit board, carpet …", max_lines=1)
    if row is not None:
        row.click(
            partial(fill_from, examples),
            row,
            [photo, references, class_name],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
    return photo, references, class_name


def _uploaded_file(payload: Any) -> str | None:
    return payload.path if payload else None


def _example_row(examples: Sequence[Example]) -> "gr.Dataset":
    import gradio as gr

    return gr.Dataset(
        label="Examples: " + ", ".join(example.class_name for example in examples),
        components=[gr.Image(visible=False)],
        samples=[[str(example.photo)] for example in examples],
        type="index",
        layout="gallery",
        elem_id="examples",
    )


def fill_from(examples: Sequence[Example], number: int) -> tuple[str, list[str], str]:
    """Photo, references and class name of an example that was clicked."""
    chosen = examples[number]
    return str(chosen.photo), [str(path) for path in chosen.references], chosen.class_name


def _right_side() -> tuple["gr.Chatbot", "gr.Textbox", "gr.Button", list["gr.Button"]]:
    import gradio as gr

    chat = gr.Chatbot(
        label="Conversation",
        height=CHAT_HEIGHT,
        placeholder="Upload a photo or click an example, then ask.",
        buttons=["copy_all"],
        elem_id="chat",
    )
    with gr.Row(equal_height=True):
        question = gr.Textbox(
            show_label=False, container=False, scale=5, max_lines=3, placeholder=SUGGESTIONS[0], elem_id="question"
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
    with gr.Row():
        suggestions = [gr.Button(text, size="sm", min_width=150) for text in SUGGESTIONS]
    return chat, question, send, suggestions


def _connect(page: Page, new_predictor: NewPredictor) -> None:
    import gradio as gr

    given = [page.photo, page.references, page.class_name, page.session]
    shown = [page.chat, page.picture, page.summary]
    one_at_a_time: dict[str, Any] = {
        "outputs": [*shown, page.question, page.session],
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "trigger_mode": "multiple",  # a question asked while another is answered waits, it is not lost
        "show_progress": "hidden",  # the chat shows a pending bubble
        "api_visibility": "private",
    }
    answer = partial(ask, new_predictor)
    asking = [gr.on([page.send.click, page.question.submit], answer, [page.question, *given], **one_at_a_time)]
    for button, text in zip(page.suggestions, SUGGESTIONS, strict=True):
        asking.append(button.click(partial(answer, text), given, **one_at_a_time))
    page.chat.clear(
        partial(start_over, None, None),
        page.session,
        [*shown, page.session],
        cancels=asking,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    for changed in (page.photo.change, page.references.change):
        changed(
            start_over,
            [page.photo, page.references, page.session],
            [*shown, page.session],
            cancels=asking,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )


# -- the command ------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns when the demo is stopped."""
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Both are read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with user_errors():
        name = arguments.config or _default_config()
        config = load_config(name, arguments.set)
        free_port(arguments.host, arguments.port)  # a wrong address is told at once
        print(f"Loading {config.name} …", flush=True)
        demo = build_demo(predictors(config, arguments.device), f"Model: {config.name}.", home() / EXAMPLES)
        # Looked for only now: loading may take minutes, in which another demo may have taken one.
        serve(demo, arguments.host, free_port(arguments.host, arguments.port), arguments.share)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Talk about parts in photos, in a browser.")
    parser.add_argument("--config", help="a shipped experiment's name, or a YAML file (default: what is installed)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="the next free one is taken (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="a public link, through Gradio's servers")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key.sub=value", help="settings to change"
    )
    return parser.parse_args(argv)


def _default_config() -> str:
    """What is installed; says why when that is not the paper's model."""
    from anomalygpt.model.build import PAPER, installed_config, missing_weights

    name = installed_config()
    if name != PAPER:
        print(f"Using {name}: for {PAPER} these are missing (pretrained_ckpt/README.md says where to get them):")
        for path in missing_weights(load_config(PAPER)):
            print(f"  {path.relative_to(home()) if path.is_relative_to(home()) else path}")
    return name


def predictors(config: "ExperimentConfig", device: str = "auto") -> NewPredictor:
    """Builds the model once; returns what makes predictors around it, each with its own references."""
    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.model.build import build_model, choose_device

    return partial(Predictor.around, build_model(config, choose_device(device), folds_lora=True), config)


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or the next free one after it; 0: any.

    Raises:
        UserError: none is free, or there is no such host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(wanted, wanted + PORTS_TRIED):
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except (PermissionError, OverflowError) as error:
                raise UserError(f"--port {port}: not allowed ({error})") from error
            except socket.gaierror as error:
                raise UserError(f"--host {host}: no address of this machine ({error})") from error
            except OSError:
                continue
            return trial.getsockname()[1]
    raise UserError(f"--port {wanted}: neither it nor the {PORTS_TRIED - 1} after it are free on {host}")


def serve(demo: "gr.Blocks", host: str, port: int, share: bool) -> None:
    """Runs the page until Ctrl-C or SIGTERM, which ``systemctl stop`` and ``docker stop`` send.

    Raises:
        UserError: the port was taken.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _open(demo, host, port, share)
        while demo.is_running:
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        _close(demo)


def _open(demo: "gr.Blocks", host: str, port: int, share: bool) -> None:
    """Starts the page, and prints its address once it is up."""
    import gradio as gr

    # Comes with Gradio; the theme's own choice, weight 600, lacks most letters.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    demo.queue(default_concurrency_limit=1, max_size=MOST_WAITING)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(home() / EXAMPLES)],
            max_file_size=LARGEST_UPLOAD,
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=[font, "system-ui", "sans-serif"]),
            css=STYLE,
            footer_links=[],
        )
    except OSError as error:
        why = str(error).split(". ")[0]  # Gradio goes on with advice for programmers
        raise UserError(f"--port {port}: no page can be served there ({why}); start again, or name another") from error
    # A wildcard address is none that a browser can open.
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    print(f"Open http://{shown}:{port}" + (f" or {demo.share_url}" if demo.share_url else ""), flush=True)


def _close(demo: "gr.Blocks") -> None:
    """Ends the public link and the server, which removes the uploads.

    Gradio's own ``block_thread`` does not tell open pages first: the server then waits for them, and is cut off.
    """
    from gradio.tunneling import CURRENT_TUNNELS

    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()
    demo.close(verbose=False)


if __name__ == "__main__":
    sys.exit(main())
