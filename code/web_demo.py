"""The demo in a browser: ``python web_demo.py``, then open the address that it prints.

One photo with its verdict, its map and a conversation about it; a part that is taught by good photos; many photos at
once. The page is in English or Chinese, by the browser's language (``web_demo.yaml``).
"""

import argparse
import csv
import json
import logging
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from anomalygpt.config.load import home, load_config, names
from anomalygpt.config.original_flags import original_settings
from anomalygpt.datasets import findings as words
from anomalygpt.datasets.findings import Findings, Language, RegionFinding
from anomalygpt.datasets.records import list_folders, list_images
from anomalygpt.errors import UserError, user_errors
from anomalygpt.files import listen
from anomalygpt.inference import session
from anomalygpt.inference.report import ORDER, SIDE, data_uri, report_html
from anomalygpt.inference.session import Conversation, Exchange, Mark, SharedModel

if TYPE_CHECKING:
    import gradio as gr
    from PIL import Image

    from anomalygpt.inference.predictor import Predictor
    from anomalygpt.inference.reference_report import ReferenceReport

Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions

MAX_WAITING = 32  # questions; Gradio turns away the next one in its own words
KEEP_SECONDS = 6 * 3600  # uploaded files and conversations
EXAMPLES = "images/examples"
PHOTO_HEIGHT = 366  # CSS pixels
THUMBNAIL = 96  # pixels
MARKS = {"mark_good": True, "mark_bad": False, "unmark": None}
SUGGESTED = ("ask_verdict", "ask_place", "ask_number", "ask_size")
PENDING = "…"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # the chat shows PENDING instead
LATEST: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
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


class Part(NamedTuple):
    """A part that the user taught."""

    name: str
    files: tuple[Path, ...]  # good photos, or one file of saved references
    report: "ReferenceReport"
    marks: tuple[Mark, ...] = ()  # photos that were called good or bad since


class Shared(NamedTuple):
    """What all tabs of the page work with."""

    model: SharedModel
    text: "gr.I18n"
    language: "gr.State"
    part: "gr.State"
    name: "gr.Dropdown"  # of the model


class ChosenLanguage:
    """Puts CHOSEN_LANGUAGE before all other scripts of the page, where Gradio itself has no place for one."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""

        async def insert(message: Any) -> None:
            if "headers" in message:
                message["headers"] = [each for each in message["headers"] if each[0] != b"content-length"]
            if "body" in message:
                message["body"] = message["body"].replace(b"<head>", b"<head>" + CHOSEN_LANGUAGE, 1)
            await send(message)

        await self.app(scope, receive, insert if scope.get("path") == "/" else send)


@cache
def page_texts() -> dict[str, dict[str, str]]:
    """The page's texts by language and name."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def bubbles(language: Language, exchanges: Iterable[Exchange]) -> list[dict[str, str]]:
    """Exchanges as messages of the chat; markup in them is shown as text."""
    messages = []
    for each in exchanges:
        note = f'<small class="note">{page_texts()[language][each.note]}</small>' if each.note else ""
        for role, text, after in (("user", each.question, ""), ("assistant", each.answer, note)):
            messages.append({"role": role, "content": f'<div dir="auto">{escape(text, quote=False)}</div>{after}'})
    return messages


def warn(language: Language, error: UserError) -> None:
    """Shows a mistake as a message, in the page's language if ``web_demo.yaml`` has it."""
    import gradio as gr

    text = str(error)
    for pattern, translated in page_texts()["errors"].items() if language == "zh" else ():
        text = re.sub(pattern, translated, text)
    gr.Warning(escape(text), title=page_texts()[language]["warning"])


def summary_html(
    language: Language, findings: Findings, regions: Sequence[RegionFinding], factor: float, chosen: int = 0
) -> str:
    """Badge, certainty, the findings in a sentence, and the table of the regions at ``factor`` times the threshold."""
    texts = page_texts()[language]
    kind = findings.status.replace(" ", "-").replace("'", "")
    certainty = "" if findings.status == "can't tell" else texts[findings.certainty]
    other = "" if factor == 1 else f'<p class="hint">{texts["other_threshold"].format(factor=factor)}</p>'
    return (
        f'<div class="verdict"><b class="{kind}">{texts[findings.status]}</b><span>{certainty}</span></div>'
        f"<p>{escape(words.answer_text('describe', findings, language))}</p>{other}"
        f"{_table(language, regions, chosen)}"
    )


def _table(language: Language, regions: Sequence[RegionFinding], chosen: int) -> str:
    texts, names = page_texts()[language], words.finding_phrases(language)["words"]
    heads = "".join(f"<th>{texts[name]}</th>" for name in ("place", "area", "size", "form"))
    rows = [f"<tr><th></th>{heads}</tr>"]
    for number, region in enumerate(regions, start=1):
        size, form = names["size"][words.size_word(region.area)], names["form"][region.form]
        cells = (_place(language, region), words.percent(region.area, language), size, form)
        pressed = str(number == chosen).lower()
        button = f'<button type="button" aria-pressed="{pressed}" title="{texts["highlight"]}">{number}</button>'
        rows.append(f"<tr><td>{button}</td>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f'<div class="regions"><table>{"".join(rows)}</table></div>' if regions else ""


def _place(language: Language, region: RegionFinding) -> str:
    place = region.place if language == "en" else words.finding_phrases(language)["words"]["place"][region.place]
    return str(place)


def part_html(language: Language, part: Part | None, *, with_report: bool = False) -> str:
    """What photos are compared with, and on request what that is worth."""
    if part is None:
        return ""
    forms, number = words.finding_phrases(language)["words"]["references"], len(part.report.names)
    count = forms["one" if number == 1 else "several"].format(count=number)
    lines = [page_texts()[language]["part"].format(name=part.name, references=count)]
    if part.marks:
        good = sum(mark.is_good for mark in part.marks)
        lines.append(page_texts()[language]["marked"].format(good=good, bad=len(part.marks) - good))
    lines += part.report.lines(language) if with_report else []
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _buttons(*, running: bool) -> tuple[Any, Any]:
    """Send and Stop: one of them is there."""
    import gradio as gr

    return gr.update(visible=not running), gr.update(visible=running, interactive=True)


def conversation_for(
    photo: str | None,
    references: Uploads,
    class_name: str | None,
    part: Part | None,
    name: str,
    current: Conversation | None,
) -> Conversation:
    """The conversation about the photo, which is compared with the good photos beside it, else with the taught part."""
    if references or not part:
        return session.conversation_about(photo, [path for path, _ in references or ()], class_name, current, (), name)
    return session.conversation_about(photo, list(map(str, part.files)), class_name, current, part.marks, name)


def show(
    model: SharedModel, language: Language, factor: float, opacity: float, photo: str | None, *given: Any
) -> tuple[Any, ...]:
    """Map, summary and conversation of a photo; see :func:`view` and, for ``given``, :func:`conversation_for`."""
    try:
        if photo:
            conversation = conversation_for(photo, *given)
            return *view(model, language, factor, opacity, conversation), conversation
    except UserError as error:
        warn(language, error)
    return None, f'<p class="hint">{page_texts()[language]["no_verdict"]}</p>', None


def view(
    model: SharedModel,
    language: Language,
    factor: float,
    opacity: float,
    conversation: Conversation | None,
    chosen: int = 0,
) -> tuple[Any, ...]:
    """The photo with its overlay, and the summary, at the threshold times a factor; a chosen region stands out."""
    import gradio as gr

    from anomalygpt.inference.regions import find_regions
    from anomalygpt.inference.visualize import overlay

    if conversation is None:
        return gr.skip(), gr.skip()
    result, preview = model.inspect(conversation)
    threshold, findings = factor * result.threshold, result.findings
    regions = findings.regions if factor == 1 else find_regions(result.map, threshold)
    picture = overlay(preview, result.map, threshold, regions, opacity, chosen)
    return (preview, picture), summary_html(language, findings, regions, factor, chosen)


def start_over(*given: Any) -> tuple[Any, ...]:
    """Chat, Send, Stop, conversation, threshold and downloads: cleared if anything else was given before."""
    import gradio as gr

    if current := given[-1]:
        with suppress(UserError):  # no photo
            if conversation_for(*given) is current:
                return (gr.skip(),) * 6
        current.is_over = True
    return [], *_buttons(running=False), None, 1, gr.update(value=None, visible=False)


def clear(conversation: Conversation | None) -> tuple[Any, ...]:
    """Send, Stop and a new conversation about the same photo."""
    if conversation:
        conversation.is_over = True
        conversation = replace(conversation, exchanges=[], is_over=False, is_stopped=False)
    return *_buttons(running=False), conversation


def ask(
    model: SharedModel, language: Language, question: str | None, *given: Any, suggested: str = SUGGESTED[0]
) -> Iterator[tuple[Any, ...]]:
    """Yields chat, question box, Send, Stop and conversation while the answer grows.

    Args:
        given: see :func:`conversation_for`.
        suggested: name of the page's own question that is asked where ``question`` is empty.
    """
    import gradio as gr

    conversation, same = given[-1], (gr.skip(),) * 3
    try:
        conversation = conversation_for(*given)
        text = (question or "").strip() or page_texts()[language][suggested]
        conversation.is_stopped = False
        earlier = list(conversation.exchanges)
        yield bubbles(language, [*earlier, Exchange(text, PENDING)]), "", *_buttons(running=True), conversation
        for exchange in model.stream(conversation, text):
            if conversation.is_over:
                return
            if exchange.answer:
                yield bubbles(language, [*earlier, exchange]), *same, conversation
        box = text if conversation.exchanges == earlier else gr.skip()
    except UserError as error:
        warn(language, error)
        box = question
    exchanges = conversation.exchanges if conversation else ()
    yield bubbles(language, exchanges), box, *_buttons(running=False), conversation


def ask_again(model: SharedModel, language: Language, *given: Any) -> Iterator[tuple[Any, ...]]:
    """As :func:`ask`, with the latest question in place of itself."""
    if given[-1] and given[-1].exchanges:
        yield from ask(model, language, given[-1].exchanges.pop().question, *given)


def stop(conversation: Conversation | None) -> Any:
    """The Stop button, which waits for the current sentence to end."""
    import gradio as gr

    if conversation:
        conversation.is_stopped = True
    return gr.update(interactive=False)


def write_files(model: SharedModel, language: Language, conversation: Conversation | None) -> Iterator[Any]:
    """Yields a photo's files: overlay, map as 32-bit float TIFF and as npy, findings with the conversation, report."""
    import gradio as gr
    import numpy as np
    from PIL import Image

    from anomalygpt.inference.visualize import save_pictures

    if conversation is None:
        return
    result, preview = model.inspect(conversation)
    with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
        stem = Path(folder) / conversation.photo.stem
        pictures = save_pictures(stem.parent, stem.name, session.read_photo(conversation.photo), result)
        names = [str(stem.parent / name) for name in pictures.values()]
        names += [f"{stem}{ending}" for ending in ("_map.npy", "_findings.json", "_report.html")]
        np.save(names[2], result.map)
        record = {"photo": conversation.photo.name, **result.findings.to_dict(), "threshold": result.threshold}
        record |= {"score": result.score, "score_threshold": result.score_threshold}
        record["conversation"] = [asdict(each) for each in conversation.exchanges]
        Path(names[3]).write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
        picture = Image.open(names[0])
        Path(names[4]).write_text(report_html([record], lambda _: picture, {}, language), encoding="utf-8")
        yield gr.update(value=names, visible=True)


def teach(
    model: SharedModel, language: Language, name: str | None, files: Sequence[str] | None, model_name: str
) -> Iterator[tuple[Any, ...]]:
    """Yields the part that good photos, or its own file, show, and its file; a warning names what can't be read."""
    readable = []
    for path in map(Path, files or ()):
        try:
            if path.suffix != ".safetensors":
                session.read_photo(path)
            readable.append(path)
        except UserError as error:
            warn(language, error)
    try:
        if not 1 <= len(readable) <= session.MAX_REFERENCES:
            raise UserError(f"{len(readable)} photos can be read: give 1 to {session.MAX_REFERENCES} of a good part.")
        name = " ".join((name or "").split()) or (readable[0].stem if len(readable) == 1 else "part")
        yield from _learned(model, model_name, name, tuple(readable))
    except UserError as error:
        warn(language, error)


def mark(
    model: SharedModel, language: Language, part: Part, conversation: Conversation | None, is_good: bool | None
) -> Iterator[tuple[Any, ...]]:
    """Yields the part, and its file, after the shown photo was called good or bad; None withdraws the latest."""
    try:
        if is_good is None:
            marks = part.marks[:-1]
        elif conversation is None:
            raise UserError(session.NO_PHOTO)
        elif conversation.references != part.files:
            raise UserError("This photo is compared with the good photos beside it, not with the learned part.")
        else:
            marks = (*part.marks, Mark(conversation.photo, conversation.class_name, is_good))
        yield from _learned(model, conversation.model if conversation else "", part.name, part.files, marks)
    except UserError as error:
        warn(language, error)


def _learned(
    model: SharedModel, model_name: str, name: str, files: tuple[Path, ...], marks: tuple[Mark, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    import gradio as gr

    with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
        target = Path(folder) / (re.sub(r"[^-\w ]", "_", name) + ".safetensors")
        part = Part(name, files, model.learn((model_name, files, marks), target), marks)
        yield part, gr.update(value=str(target), visible=True)


def inspect_many(
    model: SharedModel,
    language: Language,
    photos: Sequence[str] | None,
    part: Part | None,
    model_name: str = "",
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> Iterator[tuple[Any, ...]]:
    """Yields a line that sums up the results, their table with the worst first, and CSV, JSON and an HTML report."""
    import gradio as gr

    from anomalygpt.inference.visualize import overlay

    texts = page_texts()[language]
    compared: dict[str, Any] = {"references": part.files, "marks": part.marks} if part else {}
    found, failed = [], []  # (sort key, JSON, row of the table)
    pictures: dict[int, Image.Image] = {}  # by the identity of the JSON: photos of two folders may have one name
    for path in map(Path, progress(photos or ())):
        try:
            result, preview = model.inspect(Conversation(path, **compared, model=model_name))
        except UserError as error:
            failed.append(
                (None, {"photo": path.name, "error": str(error)}, ["", path.name, texts["error"], *[None] * 4])
            )
            continue
        findings = result.findings
        picture = overlay(preview, result.map, result.threshold, findings.regions)
        picture.thumbnail((SIDE, SIDE))
        place = _place(language, findings.regions[0]) if findings.regions else ""
        probability, area = findings.shown_probability, round(100 * findings.total_area, 1)
        shown = None if probability is None else round(100 * probability, 1)
        thumbnail = f'<img alt="" src="{data_uri(picture, THUMBNAIL)}">'
        row = [thumbnail, path.name, texts[findings.status], shown, findings.number, place, area]
        scores = {"score": result.score, "score_threshold": result.score_threshold}
        record = {"photo": path.name, **findings.to_dict(), **scores}
        pictures[id(record)] = picture
        found.append(((ORDER.index(result.status), -result.probability, -result.score), record, row))
    found.sort(key=lambda each: each[0])
    _, records, rows = zip(*found, *failed, strict=True) if found or failed else ((), (), ())
    counts = Counter(each.get("status") for each in records)
    line = texts["summary"].format(counts["good"], counts["defective"], counts["can't tell"], len(failed))
    headers = ["", *texts["columns"].split(", ")]
    with TemporaryDirectory() as folder:
        names = [str(Path(folder) / name) for name in ("results.csv", "results.json", "report.html")]
        with open(names[0], "w", encoding="utf-8-sig", newline="") as file:  # with the mark that Excel needs
            csv.writer(file).writerows(row[1:] for row in [headers, *rows])
        Path(names[1]).write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
        settings = {"class_name": part.name, "references": str(len(part.report.names))} if part else {}
        page = report_html(records, lambda record: pictures.get(id(record)), settings, language)
        Path(names[2]).write_text(page, encoding="utf-8")
        table = gr.update(value={"headers": headers, "data": list(rows)}, visible=True)
        yield f"<p>{line}</p>", table, gr.update(value=names, visible=True)


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
    new_predictor: "Callable[[], Predictor]",
    examples: Path | None = None,
    models: Sequence[str] = ("",),
    load: "Callable[[str], Callable[[], Predictor]] | None" = None,
) -> "gr.Blocks":
    """The page.

    Args:
        new_predictor: see :class:`SharedModel`.
        examples: a folder for :func:`find_examples`.
        models: names of the models to choose from, with the loaded one's first.
        load: see :class:`SharedModel`.
    """
    import gradio as gr

    def language_of(request: gr.Request) -> Language:
        chosen = request.cookies.get("language") or request.headers.get("accept-language", "")
        return "zh" if chosen.startswith("zh") else "en"

    text = gr.I18n()  # the texts themselves go to launch()
    with gr.Blocks(title="AnomalyGPT", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as demo:
        language, part = gr.State("en"), gr.State(None, time_to_live=KEEP_SECONDS)
        demo.load(language_of, None, language, **QUIET)
        gr.HTML(LANGUAGES, elem_id="languages")
        gr.Markdown(text("title"), elem_id="title")
        several: dict[str, Any] = {"choices": list(models), "value": models[0], "interactive": len(models) > 1}
        name = gr.Dropdown(label=text("model"), render=False, elem_id="model", **several)
        shared = Shared(SharedModel(new_predictor, models[0], load), text, language, part, name)
        file = _downloads(text("part_file"), "part_file", render=False)
        with gr.Tab(text("inspect")):
            _inspect_tab(shared, file, find_examples(examples) if examples else [])
        with gr.Tab(text("teach")):
            _teach_tab(shared, file)
        with gr.Tab(text("many")):
            _many_tab(shared)
        name.render()
    return demo


def _inspect_tab(shared: Shared, file: "gr.File", examples: Sequence[tuple[str, list[str], str]]) -> None:
    """A photo on the left, its map and verdict in the middle, the conversation on the right; ``file``: the part's."""
    import gradio as gr

    model, text, language, part, name = shared
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
                files = _downloads(text("downloads"), "files")
        with gr.Column(scale=5, min_width=340):
            given = [photo, references, class_name, part, name, conversation]
            shown, asking = _chat(shared, given)
    start: dict[str, Any] = {"inputs": given, "outputs": [*shown, conversation, factor, files], "queue": False}
    for changes, also in (
        ([photo.change, references.change, part.change, name.input], {"cancels": asking}),
        ([class_name.submit, class_name.blur], {}),
    ):
        gr.on(changes, start_over, **start, **also, **LATEST).then(
            partial(show, model),
            [language, factor, opacity, *given],
            [pictures, summary, conversation],
            concurrency_id="model",
            **LATEST | {"show_progress": "minimal", "show_progress_on": pictures},
        )
    adjusted = [language, factor, opacity, conversation]
    gr.on([factor.input, opacity.input], partial(view, model), adjusted, [pictures, summary], **LATEST)

    def choose(language: Language, factor: float, opacity: float, current: Any, event: gr.EventData) -> Any:
        return view(model, language, factor, opacity, current, int(event.region))

    summary.click(choose, adjusted, [pictures, summary], **LATEST)
    part.change(lambda part: gr.update(visible=bool(part)), part, feedback, queue=False, **QUIET)
    for button, said in marks:
        button.click(
            partial(mark, model, is_good=said),
            [language, part, conversation],
            [part, file],
            concurrency_id="model",
            show_progress_on=feedback,
            api_visibility="private",
        )
    prepare.click(partial(write_files, model), [language, conversation], files, api_visibility="private")


def _downloads(label: Any, name: str, *, render: bool = True) -> "gr.File":
    """Files to download, hidden until there are any."""
    import gradio as gr

    hidden: dict[str, Any] = {"interactive": False, "visible": False, "render": render}
    return gr.File(label=label, file_count="multiple", elem_id=name, **hidden)


def _photo_inputs(shared: Shared, examples: Sequence[tuple[str, list[str], str]]) -> tuple[Any, ...]:
    """Photo, references and class name, filled by a click on an example."""
    import gradio as gr

    text, language, part = shared.text, shared.language, shared.part
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


def _chat(shared: Shared, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Chat, question box, Send, Stop and suggestions: the chat with Send and Stop, and the events that ask."""
    import gradio as gr

    model, text, language = shared[:3]
    labels: dict[str, Any] = {"label": text("conversation"), "placeholder": text("chat_hint")}
    chat = gr.Chatbot(height=480, buttons=["copy_all"], render_markdown=False, elem_id="chat", **labels)
    with gr.Row(equal_height=True, elem_id="ask"):
        labels = {"label": text("conversation"), "placeholder": text("ask_verdict"), "show_label": False}
        question = gr.Textbox(container=False, scale=5, max_lines=3, elem_id="question", **labels)
        send = gr.Button(text("send"), variant="primary", scale=1, min_width=80, elem_id="send")
        halt = gr.Button(text("stop"), variant="stop", scale=1, min_width=80, visible=False, elem_id="stop")
    with gr.Row(elem_id="suggestions"):
        suggestions = [(gr.Button(text(name), size="sm", min_width=150), name) for name in SUGGESTED]
    conversation, empty = given[-1], gr.State("")
    one_at_a_time: dict[str, Any] = {
        "outputs": [chat, question, send, halt, conversation],
        "concurrency_id": "model",
        "trigger_mode": "multiple",  # a question that comes while another is answered waits
        **QUIET | {"show_progress": "minimal", "show_progress_on": chat},  # the place in the queue
    }
    asked = [send.click, question.submit]
    asking = [
        gr.on(asked, partial(ask, model), [language, question, *given], **one_at_a_time),
        chat.retry(partial(ask_again, model), [language, *given], **one_at_a_time),
        *(
            button.click(partial(ask, model, suggested=name), [language, empty, *given], **one_at_a_time)
            for button, name in suggestions
        ),
    ]
    gr.on([*asked, *(button.click for button, _ in suggestions)], js=SHOW_CHAT, **QUIET)
    halt.click(stop, conversation, halt, queue=False, **QUIET)
    chat.clear(clear, conversation, [send, halt, conversation], cancels=asking, queue=False, **QUIET)
    return [chat, send, halt], asking


def _teach_tab(shared: Shared, file: "gr.File") -> None:
    """Good photos or a saved part on the left, what was learned on the right."""
    import gradio as gr

    model, text, language, part, model_name = shared

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
    shown: dict[str, Any] = {"concurrency_id": "model", "show_progress_on": learned, "api_visibility": "private"}
    learn.click(partial(teach, model), [language, name, given, model_name], [part, file], **shown)
    forget.click(lambda: (None, gr.update(value=None, visible=False)), None, [part, file], **QUIET)
    part.change(partial(part_html, with_report=True), [language, part], learned, **QUIET)


def _many_tab(shared: Shared) -> None:
    """Photos, and a table of their results with the files."""
    import gradio as gr

    model, text, language, part, name = shared

    bar = gr.Progress()

    def run(language: Language, photos: Any, part: Part | None, name: str, progress: Any = bar) -> Iterator[Any]:
        counted = partial(progress.tqdm, unit=page_texts()[language]["many_photos"])
        yield from inspect_many(model, language, photos, part, name, counted)

    gr.Markdown(text("many_hint"))
    part.change(part_html, [language, part], gr.HTML(padding=False), **QUIET)
    several: dict[str, Any] = {"file_count": "multiple", "file_types": ["image"], "height": 180}
    photos = gr.File(label=text("many_photos"), elem_id="photos", **several)
    start = gr.Button(text("run"), variant="primary", elem_id="run")
    line = gr.HTML(elem_id="line")
    kinds: list[Any] = ["html", "str", "str", "number", "number", "str", "number"]
    table = gr.Dataframe(label=text("results"), datatype=kinds, interactive=False, visible=False, elem_id="results")
    files = _downloads(text("files"), "result_files")
    shown: dict[str, Any] = {"concurrency_id": "model", "show_progress_on": line, "api_visibility": "private"}
    start.click(run, [language, photos, part, name], [line, table, files], **shown)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns when the demo is stopped."""
    with user_errors():
        argv, flags = original_settings(argv, "imagebind_vicuna7b")
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Both are read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with user_errors():
        config = load_config(arguments.config or _default_config(), [*flags, *arguments.set])
        listen(arguments.host, arguments.port).close()  # now, because loading the model may take minutes
        print(f"Loading {config.name} …", flush=True)
        from anomalygpt.datasets.photos import configure
        from anomalygpt.inference.predictor import Predictor  # here, because it takes seconds

        configure(config.data)

        def load(name: str) -> "Callable[[], Predictor]":
            chosen = config if name == config.name else load_config(name)
            return Predictor.from_config(chosen, arguments.device).without_references

        others = [name for name in _installed() if name != config.name]
        demo = build_demo(load(config.name), home() / EXAMPLES, [config.name, *others], load)
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


def _installed() -> list[str]:
    """The shipped models whose weights are all there; experiments to be trained are none."""
    from anomalygpt.model.build import missing_weights

    shipped = [name for name in names() if not name.startswith("train_")]
    return [name for name in shipped if not missing_weights(load_config(name), all_absent=True)]


def serve(demo: "gr.Blocks", host: str, port: int | None, share: bool) -> None:
    """Shows the page at an address, which is printed, until Ctrl-C; raises UserError where no port is free."""
    import gradio as gr
    from gradio.tunneling import CURRENT_TUNNELS
    from starlette.middleware import Middleware

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
            app_kwargs={"middleware": [Middleware(ChosenLanguage)]},
            css_paths=Path(__file__).with_suffix(".css"),
            footer_links=[],
            i18n=gr.I18n(**{tag: page_texts()[tag[:2]] for tag in ("en", "zh", "zh-CN", "zh-TW")}),
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
