"""What the events of ``web_demo.py``'s page do. The page's texts are in ``page.yaml``."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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

from anomalygpt.datasets import findings as words
from anomalygpt.datasets.class_info import phrase_table
from anomalygpt.datasets.findings import Findings, Language, RegionFinding
from anomalygpt.datasets.records import read_results
from anomalygpt.errors import UserError
from anomalygpt.inference import session
from anomalygpt.inference.calibration import ReferenceReport
from anomalygpt.inference.outputs import SIDE, Outputs, data_uri, details, severity, verdict
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.results import prediction
from anomalygpt.inference.session import Conversation, Exchange, Mark, SharedModel
from anomalygpt.inference.visualize import overlay

Uploads = Sequence[tuple[str, str | None]] | None  # a gallery's files and captions
Current = Conversation | None

THUMBNAIL = 96  # pixels
PENDING = "…"
BAR = gr.Progress()


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
    texts, names = page_texts()[language], phrase_table(f"findings_{language}")["words"]
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
    forms, number = phrase_table(f"findings_{language}")["words"]["references"], len(part.report.names)
    count = forms["one" if number == 1 else "several"].format(count=number)
    lines = [page_texts()[language]["part"].format(name=part.name, references=count)]
    if part.marks:
        good = sum(mark.is_good for mark in part.marks)
        lines.append(page_texts()[language]["marked"].format(good=good, bad=len(part.marks) - good))
    lines += part.report.lines(language) if with_report else []
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _buttons(*, running: bool) -> tuple[Any, Any]:
    return gr.update(visible=not running), gr.update(visible=running, interactive=True)


def _row(language: Language, record: dict[str, Any], folder: Path) -> list[Any]:
    """Of the table of many photos: picture, name, verdict, probability in percent, number and places of regions."""
    name, kind = record["photo"], page_texts()[language][verdict(record)]
    if "error" in record:
        return ["", name, kind, None, None, ""]
    picture = f'<img alt="" src="{data_uri(folder / record["overlay"], THUMBNAIL)}">'
    share = None if record["probability"] is None else round(100 * record["probability"], 1)
    return [picture, name, kind, share, record["number"], details(record, language)]


def conversation_for(
    photo: str | None, references: Uploads, class_name: str | None, part: Part | None, name: str, current: Current
) -> Conversation:
    """The conversation about the photo, which is compared with the good photos beside it, else with the taught part."""
    own = [path for path, _ in references or ()]
    files, marks = (own, ()) if own or not part else (list(map(str, part.files)), part.marks)
    return session.conversation_about(photo, files, class_name, current, marks, name)


def start_over(*given: Any) -> tuple[Any, ...]:
    """Chat, Send, Stop, conversation, threshold and downloads: cleared if anything else was given before."""
    if current := given[-1]:
        with suppress(UserError):  # no photo
            if conversation_for(*given) is current:
                return (gr.skip(),) * 6
        current.is_over = True
    return [], *_buttons(running=False), None, 1, gr.update(value=None, visible=False)


def clear(conversation: Current) -> tuple[Any, ...]:
    """Send, Stop and a new conversation about the same photo."""
    if conversation:
        conversation.is_over = True
        conversation = replace(conversation, exchanges=[], is_over=False, is_stopped=False)
    return *_buttons(running=False), conversation


def stop(conversation: Current) -> Any:
    """The Stop button, which waits for the current sentence to end."""
    if conversation:
        conversation.is_stopped = True
    return gr.update(interactive=False)


class Page:
    """What events do with the model; ``language`` is the page's, ``given`` is for :func:`conversation_for`."""

    def __init__(self, model: SharedModel) -> None:
        self.model = model

    def show(
        self, language: Language, factor: float, opacity: float, photo: str | None, *given: Any
    ) -> tuple[Any, ...]:
        """Map, summary and conversation of a photo; see :func:`view` and, for ``given``, :func:`conversation_for`."""
        with errors_shown(language):
            if photo:
                conversation = conversation_for(photo, *given)
                return *self.view(language, factor, opacity, conversation), conversation
        return None, f'<p class="hint">{page_texts()[language]["no_verdict"]}</p>', None

    def view(
        self, language: Language, factor: float, opacity: float, current: Current, chosen: int = 0
    ) -> tuple[Any, ...]:
        """The photo with its overlay, and the summary, at the threshold times a factor; a chosen region stands out."""
        if current is None:
            return gr.skip(), gr.skip()
        result, preview = self.model.inspect(current)
        threshold, findings = factor * result.threshold, result.findings
        regions = findings.regions if factor == 1 else find_regions(result.map, threshold)
        picture = overlay(preview, result.map, threshold, regions, opacity, chosen)
        return (preview, picture), summary_html(language, findings, regions, factor, chosen)

    def ask(
        self, language: Language, question: str | None, *given: Any, suggested: str = "ask_verdict"
    ) -> Iterator[tuple[Any, ...]]:
        """Yields chat, question box, Send, Stop and conversation while the answer grows.

        Where ``question`` is empty, the page's own question of the name ``suggested`` is asked.
        """
        conversation, box = given[-1], question
        with errors_shown(language):
            conversation = conversation_for(*given)
            text = (question or "").strip() or page_texts()[language][suggested]
            conversation.is_stopped = False
            earlier = list(conversation.exchanges)
            yield bubbles(language, [*earlier, Exchange(text, PENDING)]), "", *_buttons(running=True), conversation
            for exchange in self.model.stream(conversation, text):
                if conversation.is_over:
                    return
                if exchange.answer:
                    yield bubbles(language, [*earlier, exchange]), gr.skip(), gr.skip(), gr.skip(), conversation
            box = text if conversation.exchanges == earlier else gr.skip()
        exchanges = conversation.exchanges if conversation else ()
        yield bubbles(language, exchanges), box, *_buttons(running=False), conversation

    def ask_again(self, language: Language, *given: Any) -> Iterator[tuple[Any, ...]]:
        """As :func:`ask`, with the latest question in place of itself."""
        if given[-1] and given[-1].exchanges:
            yield from self.ask(language, given[-1].exchanges.pop().question, *given)

    def write_files(self, language: Language, conversation: Current) -> Iterator[Any]:
        """Yields a photo's files: overlay, map as 32-bit float TIFF and as npy, findings with conversation, report."""
        if conversation is None:
            return
        photo, found = conversation.photo, prediction(self.model.inspect(conversation)[0], "", "")
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            outputs, array = Outputs(Path(folder)), f"{photo.stem}_map.npy"
            pictures = outputs.write_pictures(Path(photo.name), session.read_photo(photo), found)
            np.save(Path(folder) / array, found.image.map)
            exchanges = [asdict(each) for each in conversation.exchanges]
            outputs.add({"photo": photo.name, **found.to_dict(), **pictures, "conversation": exchanges})
            outputs.finish({}, language)
            names = (*pictures.values(), array, "results.jsonl", "report.html")
            yield gr.update(value=[str(Path(folder) / name) for name in names], visible=True)

    def teach(
        self, language: Language, name: str | None, files: Sequence[str] | None, model_name: str
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
                count = f"{len(readable)} photos can be read"
                raise UserError(f"{count}: give 1 to {session.MAX_REFERENCES} of a good part.")
            name = " ".join((name or "").split()) or (readable[0].stem if len(readable) == 1 else "part")
            yield from self._learned(model_name, name, tuple(readable))

    def mark(
        self, language: Language, part: Part, conversation: Current, is_good: bool | None
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
            yield from self._learned(conversation.model if conversation else "", part.name, part.files, marks)

    def _learned(
        self, model_name: str, name: str, files: tuple[Path, ...], marks: tuple[Mark, ...] = ()
    ) -> Iterator[tuple[Any, ...]]:
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            target = Path(folder) / (re.sub(r"[^-\w ]", "_", name) + ".safetensors")
            part = Part(name, files, self.model.learn((model_name, files, marks), target), marks)
            yield part, gr.update(value=str(target), visible=True)

    def inspect_many(
        self, language: Language, photos: list[str] | None, part: Part | None, name: str = "", bar: gr.Progress = BAR
    ) -> Iterator[tuple[Any, ...]]:
        """Yields a line that sums up the results, a table, the worst first, and CSV, JSON and an HTML report."""
        texts = page_texts()[language]
        compared: dict[str, Any] = {"references": part.files, "marks": part.marks} if part else {}
        settings = {"class_name": part.name, "references": str(len(part.report.names))} if part else {}
        with TemporaryDirectory() as folder:  # Gradio has its own copy of what was yielded
            outputs = Outputs(Path(folder))
            for number, path in enumerate(map(Path, bar.tqdm(photos or [], unit=texts["many_photos"]))):
                record: dict[str, Any] = {"photo": path.name}
                try:
                    result, preview = self.model.inspect(Conversation(path, **compared, model=name))
                    record |= {**prediction(result, "", "").to_dict(), "overlay": f"{number}.jpg"}
                    picture = overlay(preview, result.map, result.threshold, result.regions)
                    picture.thumbnail((SIDE, SIDE))
                    picture.save(Path(folder) / record["overlay"])
                except UserError as error:
                    record["error"] = str(error)
                outputs.add(record)
            outputs.finish(settings, language)
            records = sorted(read_results(Path(folder)), key=severity)
            counts = Counter(map(verdict, records))
            line = texts["summary"].format(counts["good"], counts["defective"], counts["can't tell"], counts["error"])
            rows = [_row(language, record, Path(folder)) for record in records]
            table = gr.update(value={"headers": ["", *texts["columns"].split(", ")], "data": rows}, visible=True)
            files = [str(Path(folder) / name) for name in ("results.csv", "results.jsonl", "report.html")]
            yield f"<p>{line}</p>", table, gr.update(value=files, visible=True)
