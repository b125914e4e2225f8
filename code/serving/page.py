"""What the events of ``web_demo.py``'s page do. The page's texts are in ``page.yaml``."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import yaml
from PIL import Image

from anomalygpt.datasets import findings as words
from anomalygpt.datasets.findings import Findings, Language, RegionFinding
from anomalygpt.errors import UserError
from anomalygpt.inference import session
from anomalygpt.inference.outputs import Outputs
from anomalygpt.inference.reference_report import ReferenceReport
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.report import SIDE, data_uri, details, report_html, severity, verdict
from anomalygpt.inference.results import prediction
from anomalygpt.inference.session import Conversation, Exchange, Mark, SharedModel
from anomalygpt.inference.visualize import overlay, save_pictures

Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions

THUMBNAIL = 96  # pixels
PENDING = "…"


class Part(NamedTuple):
    """A part that the user taught."""

    name: str
    files: tuple[Path, ...]  # good photos, or one file of saved references
    report: ReferenceReport
    marks: tuple[Mark, ...] = ()  # photos that were called good or bad since


@cache
def page_texts() -> dict[str, dict[str, str]]:
    """The page's texts by language and name."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


@contextmanager
def errors_shown(language: Language) -> Iterator[None]:
    """Shows a mistake as a message, in the page's language if ``page.yaml`` has it."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for pattern, translated in page_texts()["errors"].items() if language == "zh" else ():
            text = re.sub(pattern, translated, text)
        gr.Warning(escape(text), title=page_texts()[language]["warning"])


def bubbles(language: Language, exchanges: Iterable[Exchange]) -> list[dict[str, str]]:
    """Exchanges as messages of the chat; markup in them is shown as text."""
    messages = []
    for each in exchanges:
        note = f'<small class="note">{page_texts()[language][each.note]}</small>' if each.note else ""
        for role, text, after in (("user", each.question, ""), ("assistant", each.answer, note)):
            messages.append({"role": role, "content": f'<div dir="auto">{escape(text, quote=False)}</div>{after}'})
    return messages


def summary_html(
    language: Language, findings: Findings, regions: Sequence[RegionFinding], factor: float, chosen: int = 0
) -> str:
    """Badge, certainty, the findings in a sentence, and the table of the regions at ``factor`` times the threshold."""
    texts, names = page_texts()[language], words.finding_phrases(language)["words"]
    kind = findings.status.replace(" ", "-").replace("'", "")
    certainty = "" if findings.status == "can't tell" else texts[findings.certainty]
    other = "" if factor == 1 else f'<p class="hint">{texts["other_threshold"].format(factor=factor)}</p>'
    rows = ["<tr><th></th>" + "".join(f"<th>{texts[name]}</th>" for name in ("place", "area", "size", "form"))]
    for number, region in enumerate(regions, start=1):
        place = region.place if language == "en" else names["place"][region.place]
        size, form = names["size"][words.size_word(region.area)], names["form"][region.form]
        cells = "".join(f"<td>{cell}</td>" for cell in (place, words.percent(region.area, language), size, form))
        pressed = str(number == chosen).lower()
        button = f'<button type="button" aria-pressed="{pressed}" title="{texts["highlight"]}">{number}</button>'
        rows.append(f"<tr><td>{button}</td>{cells}")
    table = f'<div class="regions"><table>{"</tr>".join(rows)}</tr></table></div>' if regions else ""
    return (
        f'<div class="verdict"><b class="{kind}">{texts[findings.status]}</b><span>{certainty}</span></div>'
        f"<p>{escape(words.answer_text('describe', findings, language))}</p>{other}{table}"
    )


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
    files, marks = [path for path, _ in references or ()], ()
    if part and not files:
        files, marks = list(map(str, part.files)), part.marks
    return session.conversation_about(photo, files, class_name, current, marks, name)


def show(
    model: SharedModel, language: Language, factor: float, opacity: float, photo: str | None, *given: Any
) -> tuple[Any, ...]:
    """Map, summary and conversation of a photo; see :func:`view` and, for ``given``, :func:`conversation_for`."""
    with errors_shown(language):
        if photo:
            conversation = conversation_for(photo, *given)
            return *view(model, language, factor, opacity, conversation), conversation
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
    if conversation is None:
        return gr.skip(), gr.skip()
    result, preview = model.inspect(conversation)
    threshold, findings = factor * result.threshold, result.findings
    regions = findings.regions if factor == 1 else find_regions(result.map, threshold)
    picture = overlay(preview, result.map, threshold, regions, opacity, chosen)
    return (preview, picture), summary_html(language, findings, regions, factor, chosen)


def start_over(*given: Any) -> tuple[Any, ...]:
    """Chat, Send, Stop, conversation, threshold and downloads: cleared if anything else was given before."""
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
    model: SharedModel, language: Language, question: str | None, *given: Any, suggested: str = "ask_verdict"
) -> Iterator[tuple[Any, ...]]:
    """Yields chat, question box, Send, Stop and conversation while the answer grows.

    Args:
        given: see :func:`conversation_for`.
        suggested: name of the page's own question that is asked where ``question`` is empty.
    """
    conversation, box = given[-1], question
    with errors_shown(language):
        conversation = conversation_for(*given)
        text = (question or "").strip() or page_texts()[language][suggested]
        conversation.is_stopped = False
        earlier = list(conversation.exchanges)
        yield bubbles(language, [*earlier, Exchange(text, PENDING)]), "", *_buttons(running=True), conversation
        for exchange in model.stream(conversation, text):
            if conversation.is_over:
                return
            if exchange.answer:
                yield bubbles(language, [*earlier, exchange]), gr.skip(), gr.skip(), gr.skip(), conversation
        box = text if conversation.exchanges == earlier else gr.skip()
    exchanges = conversation.exchanges if conversation else ()
    yield bubbles(language, exchanges), box, *_buttons(running=False), conversation


def ask_again(model: SharedModel, language: Language, *given: Any) -> Iterator[tuple[Any, ...]]:
    """As :func:`ask`, with the latest question in place of itself."""
    if given[-1] and given[-1].exchanges:
        yield from ask(model, language, given[-1].exchanges.pop().question, *given)


def stop(conversation: Conversation | None) -> Any:
    """The Stop button, which waits for the current sentence to end."""
    if conversation:
        conversation.is_stopped = True
    return gr.update(interactive=False)


def write_files(model: SharedModel, language: Language, conversation: Conversation | None) -> Iterator[Any]:
    """Yields a photo's files: overlay, map as 32-bit float TIFF and as npy, findings with the conversation, report."""
    if conversation is None:
        return
    result, _ = model.inspect(conversation)
    with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
        stem = Path(folder) / conversation.photo.stem
        pictures = save_pictures(stem.parent, stem.name, session.read_photo(conversation.photo), result)
        names = [str(stem.parent / name) for name in pictures.values()]
        names += [f"{stem}{ending}" for ending in ("_map.npy", "_findings.json", "_report.html")]
        np.save(names[2], result.map)
        record = {"photo": conversation.photo.name, **prediction(result, "", "").to_dict()}
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
        with errors_shown(language):
            if path.suffix != ".safetensors":
                session.read_photo(path)
            readable.append(path)
    with errors_shown(language):
        if not 1 <= len(readable) <= session.MAX_REFERENCES:
            raise UserError(f"{len(readable)} photos can be read: give 1 to {session.MAX_REFERENCES} of a good part.")
        name = " ".join((name or "").split()) or (readable[0].stem if len(readable) == 1 else "part")
        yield from _learned(model, model_name, name, tuple(readable))


def mark(
    model: SharedModel, language: Language, part: Part, conversation: Conversation | None, is_good: bool | None
) -> Iterator[tuple[Any, ...]]:
    """Yields the part, and its file, after the shown photo was called good or bad; None withdraws the latest."""
    with errors_shown(language):
        if is_good is None:
            marks = part.marks[:-1]
        elif conversation is None:
            raise UserError(session.NO_PHOTO)
        elif conversation.references != part.files:
            raise UserError("This photo is compared with the good photos beside it, not with the learned part.")
        else:
            marks = (*part.marks, Mark(conversation.photo, conversation.class_name, is_good))
        yield from _learned(model, conversation.model if conversation else "", part.name, part.files, marks)


def _learned(
    model: SharedModel, model_name: str, name: str, files: tuple[Path, ...], marks: tuple[Mark, ...] = ()
) -> Iterator[tuple[Any, ...]]:
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
    texts, found = page_texts()[language], []  # results, each with its row of the table
    compared: dict[str, Any] = {"references": part.files, "marks": part.marks} if part else {}
    settings = {"class_name": part.name, "references": str(len(part.report.names))} if part else {}
    with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
        outputs = Outputs(Path(folder))
        for number, path in enumerate(map(Path, progress(photos or ()))):
            record: dict[str, Any] = {"photo": path.name}
            row = ["", path.name, texts["error"], None, None, None]
            try:
                result, preview = model.inspect(Conversation(path, **compared, model=model_name))
            except UserError as error:
                record["error"] = str(error)
            else:
                record |= {**prediction(result, "", "").to_dict(), "overlay": f"{number}.jpg"}
                picture = overlay(preview, result.map, result.threshold, result.regions)
                picture.thumbnail((SIDE, SIDE))
                picture.save(Path(folder) / record["overlay"])
                probability = None if record["probability"] is None else round(100 * record["probability"], 1)
                shown = [probability, record["number"], details(record, language)]
                row = [f'<img alt="" src="{data_uri(picture, THUMBNAIL)}">', path.name, texts[result.status], *shown]
            outputs.add(record)
            found.append((record, row))
        outputs.finish(settings, language)
        found.sort(key=lambda each: severity(each[0]))
        counts = Counter(verdict(record) for record, _ in found)
        line = texts["summary"].format(counts["good"], counts["defective"], counts["can't tell"], counts["error"])
        table = {"headers": ["", *texts["columns"].split(", ")], "data": [row for _, row in found]}
        files = [str(Path(folder) / name) for name in ("results.csv", "results.jsonl", "report.html")]
        yield f"<p>{line}</p>", gr.update(value=table, visible=True), gr.update(value=files, visible=True)
