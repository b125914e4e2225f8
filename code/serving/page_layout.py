"""The page of ``web_demo.py``: its components, and which of ``page.py``'s functions each event calls.

``shared``, in all tabs: those functions, and the components that hold language, taught part and a model's name.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.tunneling import CURRENT_TUNNELS
from starlette.middleware import Middleware

from anomalygpt.datasets.findings import Language
from anomalygpt.errors import UserError
from anomalygpt.inference.session import SharedModel
from anomalygpt.serving.page import Page, Part, clear, page_texts, part_html, start_over, stop

Shared = tuple[Page, gr.State, gr.State, gr.Dropdown]
Example = tuple[str, list[str], str]  # photo, good photos, class name

MAX_WAITING = 32  # questions; Gradio turns away the next one in its own words
KEEP_SECONDS = 6 * 3600  # uploaded files and conversations
PHOTO_HEIGHT = 366  # CSS pixels
MARKS = {"mark_good": True, "mark_bad": False, "unmark": None}
SUGGESTED = ("ask_verdict", "ask_place", "ask_number", "ask_size")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the chat shows that it works
LATEST: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
MODEL: dict[str, Any] = {"concurrency_id": "model", "api_visibility": "private"}
HIDDEN: dict[str, Any] = {"interactive": False, "visible": False}
text = gr.I18n()  # the texts themselves go to launch()
# A language that was chosen, in place of the browser's: Gradio's texts follow the one, ours the cookie.
CHOSEN_LANGUAGE = rb"""<script>
const chosen = document.cookie.match(/(?:^|; )language=([\w-]+)/)?.[1];
if (chosen) Object.defineProperties(navigator, {language: {value: chosen}, languages: {value: [chosen]}});
</script>"""
LANGUAGES = "".join(
    f'<a href="#" lang="{tag}" onclick="document.cookie = \'language={tag}; path=/; SameSite=Lax; max-age=31536000\'; '
    f'location.reload(); return false">{name}</a>'
    for tag, name in (("en", "English"), ("zh-CN", "中文"))
)
# A click on a row of the table highlights its region, another click ends that.
CHOOSE_REGION = """element.addEventListener('click', event => {
  const button = event.target.closest('tr')?.querySelector('button');
  if (button) trigger('click', {region: button.ariaPressed === 'true' ? 0 : Number(button.textContent)});
})"""
SHOW_CHAT = "() => document.querySelector('#chat').scrollIntoView({block: 'nearest', behavior: 'smooth'})"


def find_examples(folder: Path) -> list[Example]:
    """Each photo in the subfolders that is not named ``good…``, with those that are, and the subfolder's name."""
    photos = [photo for photo in sorted(folder.glob("*/*")) if not photo.name.startswith("good")]
    return [(str(photo), sorted(map(str, photo.parent.glob("good*"))), photo.parent.name) for photo in photos]


def build_page(model: SharedModel, examples: Path, models: Sequence[str] = ("",)) -> gr.Blocks:
    """The page, with the examples of a folder, and the names of the models to choose from, the loaded one's first."""

    def language_of(request: gr.Request) -> Language:
        chosen = request.cookies.get("language") or request.headers.get("accept-language", "")
        return "zh" if chosen.startswith("zh") else "en"

    with gr.Blocks(title="AnomalyGPT", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        language, part = gr.State("en"), gr.State(None, time_to_live=KEEP_SECONDS)
        demo.load(language_of, None, language, **QUIET)
        gr.HTML(LANGUAGES, elem_id="languages")
        gr.Markdown(text("title"), elem_id="title")
        several: dict[str, Any] = {"choices": list(models), "value": models[0], "interactive": len(models) > 1}
        name = gr.Dropdown(label=text("model"), render=False, elem_id="model", **several)
        shared = Page(model), language, part, name
        file = gr.File(label=text("part_file"), elem_id="part_file", render=False, **HIDDEN)
        with gr.Tab(text("inspect")):
            _inspect_tab(shared, file, find_examples(examples))
        with gr.Tab(text("teach")):
            _teach_tab(shared, file)
        with gr.Tab(text("many")):
            _many_tab(shared)
        name.render()
    return demo


def _inspect_tab(shared: Shared, file: gr.File, examples: Sequence[Example]) -> None:
    """A photo on the left, its map and verdict in the middle, the conversation on the right; ``file``: the part's."""
    page, language, part, name = shared
    conversation = gr.State(None, time_to_live=KEEP_SECONDS)
    with gr.Row(elem_id="inspect"):
        with gr.Column(scale=4, min_width=300):
            photo, references, class_name = _photo_inputs(shared, examples)
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
            shown, asking = _chat(page, language, given)
    start: dict[str, Any] = {"inputs": given, "outputs": [*shown, conversation, factor, files], "queue": False}
    adjusted, drawn = [language, factor, opacity], [pictures, summary]
    for changes, cancels in (
        ([photo.change, references.change, part.change, name.input], asking),
        ([class_name.submit, class_name.blur], None),
    ):
        gr.on(changes, start_over, cancels=cancels, **start, **LATEST).then(
            page.show,
            [*adjusted, *given],
            [*drawn, conversation],
            concurrency_id="model",
            **LATEST | {"show_progress": "minimal", "show_progress_on": pictures},
        )
    gr.on([factor.input, opacity.input], page.view, [*adjusted, conversation], drawn, **LATEST)

    def choose(language: Language, factor: float, opacity: float, current: Any, event: gr.EventData) -> Any:
        return page.view(language, factor, opacity, current, int(event.region))

    summary.click(choose, [*adjusted, conversation], drawn, **LATEST)
    part.change(lambda part: gr.update(visible=bool(part)), part, feedback, queue=False, **QUIET)
    for button, said in marks:
        marked = partial(page.mark, is_good=said)
        button.click(marked, [language, part, conversation], [part, file], show_progress_on=feedback, **MODEL)
    prepare.click(page.write_files, [language, conversation], files, api_visibility="private")


def _photo_inputs(shared: Shared, examples: Sequence[Example]) -> tuple[Any, ...]:
    """Photo, references and class name, filled by a click on an example."""
    _, language, part, _ = shared
    sources: list[Any] = ["upload", "webcam", "clipboard"]
    photo = gr.Image(label=text("photo"), sources=sources, height=PHOTO_HEIGHT, elem_id="photo")
    # The uploaded file itself, for load_image. (Gradio's own reader ends in a traceback on a broken file, and cuts
    # 16 bits off. A subclass would make it write a .pyi file beside this one.)
    photo.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign, assignment]
    shape: dict[str, Any] = {"type": "index", "layout": "gallery", "components": [gr.Image(visible=False)]}
    samples = [[photo] for photo, _, _ in examples]
    row = gr.Dataset(label=text("examples"), samples=samples, elem_id="examples", render=bool(examples), **shape)
    with gr.Accordion(text("compare"), elem_id="compare"):
        columns: dict[str, Any] = {"columns": 4, "fit_columns": False, "height": 150}
        references = gr.Gallery(label=text("references"), file_types=["image"], elem_id="good", **columns)
        hint = text("part_example")
        class_name = gr.Textbox(label=text("part_name"), placeholder=hint, max_lines=1, max_length=60, elem_id="class")
        part.change(part_html, [language, part], gr.HTML(padding=False), **QUIET)
    if examples:
        row.click(lambda number: examples[number], row, [photo, references, class_name], queue=False, **QUIET)
    return photo, references, class_name


def _chat(page: Page, language: gr.State, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Chat, question box, Send, Stop and suggestions: the chat with Send and Stop, and the events that ask."""
    labels: dict[str, Any] = {"label": text("conversation"), "placeholder": text("chat_hint")}
    chat = gr.Chatbot(height=480, buttons=["copy_all"], render_markdown=False, elem_id="chat", **labels)
    with gr.Row(equal_height=True, elem_id="ask"):
        labels = {"label": text("conversation"), "placeholder": text("ask_verdict"), "show_label": False}
        question = gr.Textbox(container=False, scale=5, max_lines=3, elem_id="question", **labels)
        send = gr.Button(text("send"), variant="primary", scale=1, min_width=80, elem_id="send")
        halt = gr.Button(text("stop"), variant="stop", scale=1, min_width=80, visible=False, elem_id="stop")
    with gr.Row(elem_id="suggestions"):
        suggestions = [(gr.Button(text(name), size="sm", min_width=150).click, name) for name in SUGGESTED]
    conversation, empty = given[-1], gr.State("")
    one_at_a_time: dict[str, Any] = {
        "outputs": [chat, question, send, halt, conversation],
        "trigger_mode": "multiple",  # a question that comes while another is answered waits
        **MODEL | {"show_progress": "minimal", "show_progress_on": chat},  # the place in the queue
    }
    asked, ask = [send.click, question.submit], page.ask
    asking = [
        gr.on(asked, ask, [language, question, *given], **one_at_a_time),
        chat.retry(page.ask_again, [language, *given], **one_at_a_time),
        *(
            click(partial(ask, suggested=name), [language, empty, *given], **one_at_a_time)
            for click, name in suggestions
        ),
    ]
    gr.on([*asked, *(click for click, _ in suggestions)], js=SHOW_CHAT, **QUIET)
    halt.click(stop, conversation, halt, queue=False, **QUIET)
    chat.clear(clear, conversation, [send, halt, conversation], cancels=asking, queue=False, **QUIET)
    return [chat, send, halt], asking


def _teach_tab(shared: Shared, file: gr.File) -> None:
    """Good photos or a saved part on the left, what was learned on the right."""
    page, language, part, model_name = shared
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
    inputs = [language, name, given, model_name]
    learn.click(page.teach, inputs, [part, file], show_progress_on=learned, **MODEL)
    forget.click(lambda: (None, gr.update(value=None, visible=False)), None, [part, file], **QUIET)
    part.change(partial(part_html, with_report=True), [language, part], learned, **QUIET)


def _many_tab(shared: Shared) -> None:
    """Photos, and a table of their results with the files."""
    page, language, part, name = shared
    bar = gr.Progress()

    def run(language: Language, photos: Any, part: Part | None, name: str, progress: Any = bar) -> Iterator[Any]:
        counted = partial(progress.tqdm, unit=page_texts()[language]["many_photos"])
        yield from page.inspect_many(language, photos, part, name, counted)

    gr.Markdown(text("many_hint"))
    part.change(part_html, [language, part], gr.HTML(padding=False), **QUIET)
    several: dict[str, Any] = {"file_count": "multiple", "file_types": ["image"], "height": 180}
    photos = gr.File(label=text("many_photos"), elem_id="photos", **several)
    start = gr.Button(text("run"), variant="primary", elem_id="run")
    line = gr.HTML(elem_id="line")
    kinds: list[Any] = ["html", "str", "str", "number", "number", "str"]
    table = gr.Dataframe(label=text("results"), datatype=kinds, elem_id="results", **HIDDEN)
    files = gr.File(label=text("files"), file_count="multiple", elem_id="result_files", **HIDDEN)
    start.click(run, [language, photos, part, name], [line, table, files], show_progress_on=line, **MODEL)


def language_choice(app: Any) -> Any:
    """ASGI middleware that puts CHOSEN_LANGUAGE before the page's other scripts, where Gradio has no place for one."""

    async def with_choice(scope: Any, receive: Any, send: Any) -> None:
        async def insert(message: Any) -> None:
            if "headers" in message:
                message["headers"] = [each for each in message["headers"] if each[0] != b"content-length"]
            if "body" in message:
                message["body"] = message["body"].replace(b"<head>", b"<head>" + CHOSEN_LANGUAGE, 1)
            await send(message)

        await app(scope, receive, insert if scope.get("path") == "/" else send)

    return with_choice


def serve(demo: gr.Blocks, host: str, port: int | None, share: bool, examples: Path) -> None:
    """Shows the page at an address, which is printed, until Ctrl-C; raises UserError where no port is free."""
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
            allowed_paths=[str(examples)],
            max_file_size="50mb",
            theme=theme,
            app_kwargs={"middleware": [Middleware(language_choice)]},
            css_paths=Path(__file__).with_name("page.css"),
            footer_links=[],
            i18n=gr.I18n(**{tag: page_texts()[tag[:2]] for tag in ("en", "zh", "zh-CN", "zh-TW")}),
        )
        # A browser can't open the wildcard address.
        url = str(demo.local_url).rstrip("/").replace("[::]", "localhost")
        print(f"Open {url}" + (f" or {demo.share_url}" if demo.share_url else ""), flush=True)
        while demo.is_running:
            time.sleep(1)
    except OSError as error:
        raise UserError(f"no page can be served on {host} ({error}); name another --port") from error
    except KeyboardInterrupt:
        pass
    finally:
        # Gradio's own block_thread leaves the streams of open pages: the server waits for them, and uploads stay.
        for tunnel in CURRENT_TUNNELS:
            tunnel.kill()
        demo.close(verbose=False)
