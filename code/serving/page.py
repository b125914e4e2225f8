"""The page of ``web_demo.py``: what its events do, its components, and which event calls what.

The page's texts are in ``page.yaml``, its HTML in ``page.html``.
"""

import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from html import escape
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from gradio.tunneling import CURRENT_TUNNELS
from jinja2 import Template
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from anomalygpt.datasets import findings as words
from anomalygpt.datasets.class_info import phrase_table
from anomalygpt.datasets.findings import Language
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import RESULTS
from anomalygpt.errors import UserError, collected_warnings
from anomalygpt.files import read_lines, read_yaml
from anomalygpt.inference import session
from anomalygpt.inference.calibration import ReferenceReport
from anomalygpt.inference.outputs import SIDE, Outputs, data_uri, details, severity, verdict
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.results import prediction
from anomalygpt.inference.session import Conversation, Exchange, Mark, SharedModel
from anomalygpt.inference.visualize import overlay

Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions
Current = Conversation | None
Example = tuple[str, list[str], str]  # photo, good photos, class name

THUMBNAIL, EXAMPLES_SHOWN = 96, 8  # pixels; at once, as many as there are parts
PENDING = "…"
BAR = gr.Progress()
TEXTS: dict[str, dict[str, str]] = read_yaml(Path(__file__).with_suffix(".yaml"))  # by language and name
_template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"), autoescape=True, trim_blocks=True)
HTML: Any = _template.make_module({"words": words, "phrase_table": phrase_table, "page_texts": TEXTS})  # its macros


class Part(NamedTuple):
    """A part that the user taught."""

    name: str
    files: tuple[Path, ...]  # good photos, or one file of saved references
    report: ReferenceReport
    marks: tuple[Mark, ...] = ()  # photos that were called good or bad since


@contextmanager
def errors_shown(language: Language) -> Iterator[None]:
    """Shows a mistake, and doubts about how photos were read, as messages."""
    messages = list[str]()
    try:
        with collected_warnings() as messages:
            yield
    except UserError as error:
        messages.append(str(error))
    for message in messages[-MOST_MESSAGES:]:
        gr.Warning(escape(said(language, message)), title=TEXTS[language]["warning"])


def said(language: Language, message: str) -> str:
    """A message without the server's folders, in the page's language if ``page.yaml`` has it."""
    message = re.sub(r"(?<![\w:/])/(?:[^/\s]+/)+", "", message)
    for pattern, translated in TEXTS["errors"].items() if language == "zh" else ():
        message = re.sub(pattern, translated, message)
    return message


def bubbles(language: Language, exchanges: Iterable[Exchange]) -> list[dict[str, str]]:
    """Exchanges as messages of the chat; markup in them is shown as text."""
    messages = []
    for each in exchanges:
        note = f'<small class="note">{TEXTS[language][each.note]}</small>' if each.note else ""
        for role, text, after in (("user", each.question, ""), ("assistant", each.answer, note)):
            messages.append({"role": role, "content": f'<div dir="auto">{escape(text, quote=False)}</div>{after}'})
    return messages


def part_html(language: Language, part: Part | None, *, with_report: bool = False) -> str:
    """What photos are compared with, and on request what that is worth."""
    return HTML.part(language, part, with_report) if part else ""


def _box(*, running: bool, **changes: Any) -> Any:
    """Changes of the question box, which has a button that stops the answer in the place of the one that sends."""
    return gr.update(submit_btn=not running, stop_btn=running, **changes)


def _row(language: Language, record: dict[str, Any], folder: Path) -> list[Any]:
    """Of the table of many photos: picture, name, verdict, probability in percent, number and places of regions."""
    name, kind = record["photo"], TEXTS[language][verdict(record)]
    if "error" in record:
        return ["", name, kind, None, None, said(language, record["error"])]
    picture = f'<img alt="" src="{data_uri(folder / record["overlay"], THUMBNAIL)}">'
    share = None if record["probability"] is None else round(100 * record["probability"], 1)
    found = [details(record, language), *(said(language, each) for each in record["warnings"])]
    return [picture, name, kind, share, record["number"], " · ".join(filter(None, found))]


def conversation_for(
    photo: str | None, references: Uploads, class_name: str | None, part: Part | None, name: str, current: Current
) -> Conversation:
    """The conversation about the photo, which is compared with the good photos beside it, else with the taught part."""
    own = [path for path, _ in references or ()]
    files, marks = (own, ()) if own or not part else (list(map(str, part.files)), part.marks)
    return session.conversation_about(photo, files, class_name, current, marks, name)


def start_over(*given: Any) -> tuple[Any, ...]:
    """Chat, question box, conversation, threshold and downloads: anew if anything else was given before."""
    current, new = given[-1], None
    with suppress(UserError):  # no photo
        new = conversation_for(*given)
    if current and new is current:
        return (gr.skip(),) * 5
    if current:
        current.is_over = True
    return [], _box(running=False), new, 1, gr.update(value=None, visible=False)


def clear(conversation: Current) -> tuple[Any, ...]:
    """Question box, and a new conversation about the same photo."""
    if conversation:
        conversation.is_over = True
        conversation = replace(conversation, exchanges=[], is_over=False, is_stopped=False)
    return _box(running=False), conversation


def stop(conversation: Current) -> Any:
    """The question box without a button, until the current sentence ends."""
    if conversation:
        conversation.is_stopped = True
    return gr.update(stop_btn=False)


class Page:
    """What events do with the model; ``language`` is the page's, ``given`` is for :func:`conversation_for`."""

    def __init__(self, model: SharedModel) -> None:
        self.model = model

    def show(self, language: Language, factor: float, opacity: float, *given: Any, chosen: int = 0) -> tuple[Any, ...]:
        """The photo with its overlay, the summary, both at a factor of the threshold, and the conversation."""
        factor = factor or 1  # an emptied box
        with errors_shown(language):
            if given[0]:
                conversation = conversation_for(*given)
                result, preview = self.model.inspect(conversation)
                threshold, findings = factor * result.threshold, result.findings
                regions = findings.regions if factor == 1 else find_regions(result.map, threshold)
                picture = overlay(preview, result.map, threshold, regions, opacity, chosen)
                return (preview, picture), HTML.summary(language, findings, regions, factor, chosen), conversation
        return None, f'<p class="hint">{TEXTS[language]["no_verdict"]}</p>', None

    def ask(self, language: Language, question: str, *given: Any, suggested: str = "ask_verdict") -> Iterator[Any]:
        """Yields chat, question box and conversation while the answer to a question, or to a suggested one, grows."""
        conversation, left = given[-1], {"value": question}
        if conversation and conversation.is_over:  # while the question waited
            return
        with errors_shown(language):
            conversation = conversation_for(*given)
            text = question.strip() or TEXTS[language][suggested]
            conversation.is_stopped = False
            earlier = list(conversation.exchanges)
            yield bubbles(language, [*earlier, Exchange(text, PENDING)]), _box(running=True, value=""), conversation
            for exchange in self.model.stream(conversation, text):
                if conversation.is_over:  # Gradio would show the last output again
                    return (yield [], _box(running=False), gr.skip())
                if exchange.answer:
                    yield bubbles(language, [*earlier, exchange]), gr.skip(), conversation
            left = {"value": text} if conversation.exchanges == earlier else {}
        current = conversation if conversation and not conversation.is_over else None
        yield bubbles(language, current.exchanges if current else ()), _box(running=False, **left), current or gr.skip()

    def ask_again(self, language: Language, *given: Any) -> Iterator[Any]:
        """As :func:`ask`, with the latest question in place of itself."""
        if given[-1] and given[-1].exchanges:
            yield from self.ask(language, given[-1].exchanges.pop().question, *given)

    def write_files(self, language: Language, conversation: Current) -> Iterator[Any]:
        """Yields a photo's files: overlay, map as 32-bit float TIFF and as npy, findings with conversation, report."""
        if conversation is None:
            return
        name, found = conversation.photo.name, prediction(self.model.inspect(conversation)[0], "", "")
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            outputs, array = Outputs(Path(folder)), f"{conversation.photo.stem}_map.npy"
            pictures = outputs.write_pictures(Path(name), found)
            np.save(Path(folder) / array, found.image.map)
            exchanges = [asdict(each) for each in conversation.exchanges]
            outputs.add({"photo": name, **found.to_dict(), **pictures, "conversation": exchanges})
            outputs.finish({}, language)
            files = (*pictures.values(), array, "results.jsonl", "report.html")
            yield gr.update(value=[str(Path(folder) / file) for file in files], visible=True)

    def teach(self, language: Language, name: str, files: Sequence[str] | None, model: str) -> Iterator[Any]:
        """Yields the part that good photos, or its own file, show, and its file; warnings name what can't be read."""
        readable = []
        for path in map(Path, files or ()):
            with errors_shown(language), collected_warnings():  # which come again below
                if path.suffix != ".safetensors":
                    load_image(path)
                readable.append(path)
        with errors_shown(language):
            paths, most = tuple(readable), session.MAX_REFERENCES
            if not 1 <= len(paths) <= most:
                raise UserError(f"{len(paths)} photos can be read: give 1 to {most} of a good part.")
            name = " ".join(name.split()) or (paths[0].stem if len(paths) == 1 else "part")
            yield from self._learned(model, name, paths)

    def mark(self, language: Language, *given: Any, is_good: bool | None) -> Iterator[tuple[Any, ...]]:
        """Yields the part, and its file, after the shown photo was called good or bad; None withdraws the latest."""
        with errors_shown(language):
            shown, part = conversation_for(*given), given[3]
            if shown.references != part.files:
                raise UserError("This photo is compared with the good photos beside it, not with the learned part.")
            marks = part.marks[:-1] if is_good is None else (*part.marks, Mark(shown.photo, shown.class_name, is_good))
            yield from self._learned(shown.model, part.name, part.files, marks)

    def _learned(self, model: str, name: str, files: tuple[Path, ...], marks: tuple[Mark, ...] = ()) -> Iterator[Any]:
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            target = Path(folder) / (re.sub(r"[^-\w ]", "_", name) + ".safetensors")
            part = Part(name, files, self.model.learn((model, files, marks), target), marks)
            yield part, gr.update(value=str(target), visible=True)

    def inspect_many(
        self, language: Language, photos: list[str] | None, part: Part | None, name: str = "", bar: gr.Progress = BAR
    ) -> Iterator[tuple[Any, ...]]:
        """Yields a line that sums up the results, a table, the worst first, and CSV, JSON and an HTML report."""
        texts = TEXTS[language]
        compared: dict[str, Any] = {"references": part.files, "marks": part.marks} if part else {}
        settings = {"class_name": part.name, "references": str(len(part.report.names))} if part else {}
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            outputs = Outputs(Path(folder))
            for number, path in enumerate(map(Path, bar.tqdm(photos or [], unit=texts["many_photos"]))):
                record: dict[str, Any] = {"photo": path.name}
                try:
                    with collected_warnings() as warnings:
                        result, preview = self.model.inspect(Conversation(path, **compared, model=name))
                    record |= {**prediction(result, "", "").to_dict(), "overlay": f"{number}.jpg"}
                    record["warnings"] = [said("en", each) for each in warnings]
                    picture = overlay(preview, result.map, result.threshold, result.regions)
                    picture.thumbnail((SIDE, SIDE))
                    picture.save(Path(folder) / record["overlay"])
                except UserError as error:
                    record["error"] = said("en", str(error))
                outputs.add(record)
            outputs.finish(settings, language)
            records = sorted(read_lines(Path(folder) / RESULTS), key=severity)
            counts = Counter(map(verdict, records))
            line = texts["summary"].format(counts["good"], counts["defective"], counts["can't tell"], counts["error"])
            rows = [_row(language, record, Path(folder)) for record in records]
            table = gr.update(value={"headers": ["", *texts["columns"].split(", ")], "data": rows}, visible=True)
            files = [str(Path(folder) / name) for name in ("results.csv", "results.jsonl", "report.html")]
            yield f"<p>{line}</p>", table, gr.update(value=files, visible=True)


MAX_WAITING = 32  # questions; Gradio turns away the next one in its own words
MOST_MESSAGES = 4  # at a time
KEEP_SECONDS = 6 * 3600  # uploaded files and conversations
PHOTO_HEIGHT = 366  # CSS pixels
MARKS = {"mark_good": True, "mark_bad": False, "unmark": None}
SUGGESTED = ("ask_verdict", "ask_place", "ask_number", "ask_size")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the chat shows that it works
LATEST: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
MODEL: dict[str, Any] = {"concurrency_id": "model", "api_visibility": "private"}
HIDDEN: dict[str, Any] = {"interactive": False, "visible": False}
text = gr.I18n()  # the texts themselves go to launch()
# A click on a row of the table highlights its region, another click ends that.
CHOOSE_REGION = """element.addEventListener('click', event => {
  const button = event.target.closest('tr')?.querySelector('button');
  if (button) trigger('click', {region: button.ariaPressed === 'true' ? 0 : Number(button.textContent)});
})"""
SHOW_CHAT = "() => document.querySelector('#chat').scrollIntoView({block: 'nearest', behavior: 'smooth'})"


def find_examples(folder: Path) -> list[Example]:
    """By name, each photo in a subfolder that is not named ``good…``, with those that are, and the subfolder's name."""
    photos = [p for p in sorted(folder.glob("*/*"), key=attrgetter("name", "parent")) if not p.name.startswith("good")]
    return [(str(photo), sorted(map(str, photo.parent.glob("good*"))), photo.parent.name) for photo in photos]


def build_page(model: SharedModel, examples: Path, models: Sequence[str] = ("",)) -> gr.Blocks:
    """The page, with the examples of a folder, and the names of the models to choose from, the loaded one's first."""

    def language_of(request: gr.Request) -> Language:
        chosen = request.cookies.get("language") or request.headers.get("accept-language", "")
        return "zh" if chosen.startswith("zh") else "en"

    with gr.Blocks(title="AnomalyGPT", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        language, part = gr.State("en"), gr.State(None, time_to_live=KEEP_SECONDS)
        demo.load(language_of, None, language, **QUIET)
        gr.HTML(HTML.languages(), elem_id="languages")
        with gr.Row(elem_id="head"):
            gr.Markdown(text("title"), elem_id="title")
            several: dict[str, Any] = {"choices": list(models), "value": models[0], "interactive": len(models) > 1}
            name = gr.Dropdown(label=text("model"), container=False, scale=0, min_width=180, elem_id="model", **several)
        page = Page(model)
        file = gr.File(label=text("part_file"), elem_id="part_file", render=False, **HIDDEN)
        with gr.Tab(text("inspect")):
            _inspect_tab(page, language, part, name, file, find_examples(examples))
        with gr.Tab(text("teach")):
            _teach_tab(page, language, part, name, file)
        with gr.Tab(text("many")):
            _many_tab(page, language, part, name)
    return demo


def _inspect_tab(
    page: Page, language: gr.State, part: gr.State, name: gr.Dropdown, file: gr.File, examples: Sequence[Example]
) -> None:
    """A photo on the left, its map and verdict in the middle, the conversation on the right; ``file``: the part's."""
    conversation = gr.State(None, time_to_live=KEEP_SECONDS)
    with gr.Row(elem_id="inspect"):
        with gr.Column(scale=4, min_width=300):
            photo, references, class_name = _photo_inputs(language, part, examples)
        with gr.Column(scale=4, min_width=300):
            shape: dict[str, Any] = {"max_height": PHOTO_HEIGHT, "slider_position": 0, "buttons": ["fullscreen"]}
            pictures = gr.ImageSlider(label="map", show_label=False, interactive=False, elem_id="map", **shape)
            summary = gr.HTML(text("no_verdict"), elem_id="summary", js_on_load=CHOOSE_REGION)
            with gr.Row(visible=False, elem_id="feedback") as feedback:
                marks = [(gr.Button(text(each), size="sm", min_width=80), said) for each, said in MARKS.items()]
            with gr.Accordion(text("adjust"), open=False, elem_id="adjust"):
                factor = gr.Slider(0.5, 2, 1, step=0.05, label=text("threshold"), elem_id="threshold")
                opacity = gr.Slider(0, 1, 1, step=0.05, label=text("opacity"), elem_id="opacity")
                prepare = gr.Button(text("prepare"), size="sm", elem_id="prepare")
                files = gr.File(label=text("downloads"), file_count="multiple", elem_id="files", **HIDDEN)
        with gr.Column(scale=5, min_width=340):
            given = [photo, references, class_name, part, name, conversation]
            chat, question = _chat(page, language, given)
    adjusted, showing = [language, factor, opacity, *given], [pictures, summary, conversation]
    cleared = [chat, question, conversation, factor, files]
    shown = LATEST | {"concurrency_id": "model", "show_progress": "minimal", "show_progress_on": pictures}
    changes = [photo.change, references.change, part.change, name.input, class_name.submit, class_name.blur]
    changed = gr.on(changes, start_over, given, cleared, queue=False, **LATEST)
    changed.then(page.show, adjusted, showing, **shown)
    gr.on([factor.input, opacity.input], page.show, adjusted, showing, **LATEST)

    def choose(event: gr.EventData, *given: Any) -> tuple[Any, ...]:
        return page.show(*given, chosen=int(event.region))

    summary.click(choose, adjusted, showing, **LATEST)
    part.change(lambda part: gr.update(visible=bool(part)), part, feedback, queue=False, **QUIET)
    for button, said in marks:
        marked = partial(page.mark, is_good=said)
        button.click(marked, [language, *given], [part, file], show_progress_on=feedback, **MODEL)
    prepare.click(page.write_files, [language, conversation], files, api_visibility="private")


def _photo_inputs(language: gr.State, part: gr.State, examples: Sequence[Example]) -> tuple[Any, ...]:
    """Photo, references and class name, filled by a click on an example."""
    sources: list[Any] = ["upload", "webcam", "clipboard"]
    photo = gr.Image(label=text("photo"), sources=sources, height=PHOTO_HEIGHT, elem_id="photo")
    # The uploaded file itself, for load_image. (Gradio's own reader ends in a traceback on a broken file, and cuts
    # 16 bits off. A subclass would make it write a .pyi file beside this one.)
    photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign, assignment]
    shape: dict[str, Any] = {"type": "index", "layout": "gallery", "components": [gr.Image(visible=False)]}
    shape |= {"samples_per_page": EXAMPLES_SHOWN, "samples": [[photo] for photo, _, _ in examples]}
    row = gr.Dataset(label=text("examples"), elem_id="examples", render=bool(examples), **shape)
    with gr.Accordion(text("compare"), elem_id="compare"):
        columns: dict[str, Any] = {"columns": 4, "fit_columns": False, "height": 150}
        references = gr.Gallery(label=text("references"), file_types=["image"], elem_id="good", **columns)
        labels: dict[str, Any] = {"label": text("part_name"), "placeholder": text("part_example")}
        class_name = gr.Textbox(max_lines=1, max_length=60, elem_id="class", **labels)
        part.change(part_html, [language, part], gr.HTML(padding=False), **QUIET)
    if examples:
        is_example, compared = gr.State(False), [references, class_name]
        row.click(lambda n: (*examples[n], True), row, [photo, *compared, is_example], queue=False, **QUIET)
        forget = photo.upload  # the example's good photos, when the user's own photo takes its place
        forget(lambda was: [None, "", False] if was else [gr.skip()] * 3, is_example, [*compared, is_example], **QUIET)
    return photo, references, class_name


def _chat(page: Page, language: gr.State, given: Sequence[Any]) -> tuple[gr.Chatbot, gr.Textbox]:
    """The chat, the question box and suggestions below it."""
    labels: dict[str, Any] = {"label": text("conversation"), "placeholder": text("chat_hint")}
    chat = gr.Chatbot(height=480, buttons=["copy_all"], render_markdown=False, elem_id="chat", **labels)
    labels = {"label": text("conversation"), "placeholder": text("ask_verdict"), "show_label": False}
    question = gr.Textbox(container=False, max_lines=3, submit_btn=True, elem_id="question", **labels)
    conversation, empty = given[-1], gr.State("")
    one_at_a_time: dict[str, Any] = {
        "outputs": [chat, question, conversation],
        "trigger_mode": "multiple",  # a question that comes while another is answered waits
        **MODEL | {"show_progress": "minimal", "show_progress_on": chat},  # the place in the queue
    }
    question.submit(page.ask, [language, question, *given], **one_at_a_time)
    question.submit(None, js=SHOW_CHAT, **QUIET)
    with gr.Row(elem_id="suggestions"):
        for name in SUGGESTED:
            button = gr.Button(text(name), size="sm", min_width=150)
            button.click(partial(page.ask, suggested=name), [language, empty, *given], **one_at_a_time)
            button.click(None, js=SHOW_CHAT, **QUIET)
    question.stop(stop, conversation, question, queue=False, **QUIET)
    chat.retry(page.ask_again, [language, *given], **one_at_a_time)
    chat.clear(clear, conversation, [question, conversation], queue=False, **QUIET)
    return chat, question


def _teach_tab(page: Page, language: gr.State, part: gr.State, model_name: gr.Dropdown, file: gr.File) -> None:
    gr.Markdown(text("teach_hint"))
    with gr.Row():
        with gr.Column():
            several: dict[str, Any] = {"file_count": "multiple", "file_types": ["image", ".safetensors"]}
            given = gr.File(label=text("teach_files"), height=220, elem_id="part", **several)
            name = gr.Textbox(label=text("name"), max_lines=1, max_length=60, elem_id="name")
            learn = gr.Button(text("learn"), variant="primary", elem_id="learn")
        with gr.Column():
            learned = gr.HTML(elem_id="learned")
            file.render()
            forget = gr.Button(text("forget"), size="sm", elem_id="forget")
    learn.click(page.teach, [language, name, given, model_name], [part, file], show_progress_on=learned, **MODEL)
    forget.click(lambda: (None, gr.update(value=None, visible=False)), None, [part, file], **QUIET)
    part.change(partial(part_html, with_report=True), [language, part], learned, **QUIET)


def _many_tab(page: Page, language: gr.State, part: gr.State, name: gr.Dropdown) -> None:
    gr.Markdown(text("many_hint"))
    part.change(part_html, [language, part], gr.HTML(padding=False), **QUIET)
    several: dict[str, Any] = {"file_count": "multiple", "file_types": ["image"], "height": 180}
    photos = gr.File(label=text("many_photos"), elem_id="photos", **several)
    start = gr.Button(text("run"), variant="primary", elem_id="run")
    line = gr.HTML(elem_id="line")
    kinds: list[Any] = ["html", "str", "str", "number", "number", "str"]
    table = gr.Dataframe(label=text("results"), datatype=kinds, elem_id="results", **HIDDEN)
    files = gr.File(label=text("files"), file_count="multiple", elem_id="result_files", **HIDDEN)
    start.click(page.inspect_many, [language, photos, part, name], [line, table, files], show_progress_on=line, **MODEL)


async def with_language_choice(request: Request, answer_to: Callable[[Request], Awaitable[Any]]) -> Response:
    """The answer to a request, with the chosen language before the page's other scripts, where Gradio has no place."""
    answer = await answer_to(request)
    if request.scope["path"] != "/":
        return answer
    page = b"".join([piece async for piece in answer.body_iterator]).decode()
    return HTMLResponse(page.replace("<head>", f"<head>{HTML.chosen_language()}", 1))


def serve(demo: gr.Blocks, host: str, port: int | None, share: bool, examples: Path) -> None:
    """Shows the page at an address, which is printed, until Ctrl-C."""
    # Comes with Gradio; the theme's own choice, weight 600, lacks most letters.
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
    demo.queue(default_concurrency_limit=1, max_size=MAX_WAITING)
    with suppress(KeyboardInterrupt):
        demo.launch(
            server_name=f"[{host}]" if ":" in host else host,
            server_port=port or None,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(examples)],
            max_file_size="50mb",
            theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=[font, "system-ui", "sans-serif"]),
            app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=with_language_choice)]},
            css_paths=Path(__file__).with_suffix(".css"),
            footer_links=[],
            i18n=gr.I18n(**{tag: TEXTS[tag[:2]] for tag in ("en", "zh", "zh-CN", "zh-TW")}),
        )
        # A browser can't open the wildcard address.
        url = str(demo.local_url).rstrip("/").replace("[::]", "localhost")
        print(f"Open {url}" + (f" or {demo.share_url}" if demo.share_url else ""), flush=True)
        threading.Event().wait()
    # Gradio's own block_thread leaves the streams of open pages: the server waits for them, and uploads stay.
    for tunnel in CURRENT_TUNNELS:
        tunnel.kill()
    demo.close(verbose=False)
