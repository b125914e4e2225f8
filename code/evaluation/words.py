"""Measures answers in words: asks every kind of question about a photo, and compares with its findings and its mask."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, answer_text
from anomalygpt.datasets.findings_dialogue import draw_question, kinds
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import marks_position
from anomalygpt.datasets.transforms import ImageTransform, load_image
from anomalygpt.evaluation.ground_truth import ground_truth
from anomalygpt.evaluation.protocol import Cell, Plan, photo_name, photo_seed, test_photos
from anomalygpt.evaluation.published import Spread
from anomalygpt.evaluation.tables import markdown_table, percent, write_texts
from anomalygpt.inference.answer_check import check_answer, language_of
from anomalygpt.inference.answer_claims import ClaimReader
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.results import ImageResult, Prediction

TRUTHS = ("verdict", "place", "number", "size")  # the claims that are compared with the label and the mask
UNREADABLE = ("language", "empty", "repetition", "cut_off", "markup")  # faults of form
SIZE_FACTOR = 2.0  # an area is right within this factor of the mask's
EXAMPLES = 3  # failures shown of each kind of question and language
FILLERS = re.compile(
    r"\b(?:the|an?|there|is|are|it|its|in|of|image|that|and|so|too)\b|图中|图像|[在的是有处了共个和、；]"
)
SHARES = ["raw true", "raw same", "true", "same", "word for word", "corrected", "replaced", "unreadable", *TRUTHS]
TIMES = ["first text", "a token"]
MEANING = (
    "Shares in percent. Raw: the language model's own answers; the other columns: what is shown after the check. True: "
    "the check finds no contradiction to the findings. Same: the words and numbers of the findings' own sentence for "
    "this kind of question, in any order, without fillers: independent of the check and stricter. Corrected: generated "
    "again, or cut before a contradiction; replaced: by the findings' own sentence. Unreadable: wrong language, empty, "
    "repeated, cut off or markup. Verdict, place, number, size: of the answers that state one, the share that agrees "
    "with the photo's label and mask (place: the first one holds part of a defect; size: within a factor of two); "
    "errors there are those of the map."
)


@dataclass(frozen=True)
class Answered:
    """One question about a photo, and its answer.

    Attributes:
        kind: of question, a key of the phrases' ``questions``.
        follows: whether it follows up on another question.
        reference: the findings' own sentence for its kind.
        raw: the language model's own answer; ``answer``: what is shown after the check.
        raw_faults, faults: what the check finds in each, as ``kind: words``.
        agrees: see :func:`compare_with_mask`.
        first_text, seconds: until the first piece was shown, and until the last; ``tokens`` in all.
    """

    photo: str
    language: Language
    kind: str
    follows: bool
    question: str
    reference: str
    raw: str
    answer: str
    source: str
    raw_faults: tuple[str, ...]
    faults: tuple[str, ...]
    agrees: dict[str, bool]
    tokens: int
    first_text: float
    seconds: float


@dataclass(frozen=True)
class WordsResult:
    """The answers about a cell's photos."""

    cell: Cell
    photos: tuple[str, ...]
    answers: tuple[Answered, ...]
    seconds: float


@dataclass(frozen=True)
class WordsEvaluator:
    """Measures one cell after the other; ``photos``: how many of each class, drawn by the plan's seed."""

    predictor: Predictor
    records: Sequence[ImageRecord]
    plan: Plan
    root: Path
    photos: int

    def measure(self, cell: Cell, on_photo: Callable[[], object] = lambda: None) -> WordsResult:
        """Asks about a class's photos, and calls ``on_photo`` after each; raises as ``Evaluator.measure``."""
        started, answers, names = time.monotonic(), [], []
        references = self.plan.references(self.records, cell)
        self.predictor.set_references([load_image(record.image) for record in references])
        for record in sample(test_photos(self.records, cell.class_name), self.photos, self.plan.seed):
            names.append(photo_name(record, self.root))
            image = self.predictor.inspect(load_image(record.image), record.class_name)
            for language in LANGUAGES:
                seed = photo_seed(self.plan.seed, cell, f"{names[-1]}/{language}")
                answers += self._conversations(record, names[-1], image, language, seed)
            on_photo()
        return WordsResult(cell, tuple(names), tuple(answers), time.monotonic() - started)

    def _conversations(
        self, record: ImageRecord, name: str, image: ImageResult, language: Language, seed: int
    ) -> list[Answered]:
        """Every kind of question once, in conversations of two: one begins, the next follows up on it."""
        rng, findings = np.random.default_rng(seed), image.findings
        answers: list[Answered] = []
        for number, kind in enumerate(rng.permutation(kinds(language)).tolist()):
            question, claim = draw_question(kind, findings, language, rng, "held_out")
            history = [(answers[-1].question, answers[-1].answer)] if number % 2 else []
            torch.manual_seed(seed + number)
            shown, first_text, seconds = timed(self.predictor, image, question, history)
            raw, model = shown.answer, self.predictor.language_model
            if shown.answer_source != "model" and model:  # the check has interrupted it
                torch.manual_seed(seed + number)
                *_, raw = model.texts(image, findings, question, history)
            answers.append(
                Answered(
                    photo=name,
                    language=language,
                    kind=kind,
                    follows=bool(history),
                    question=question,
                    reference=answer_text(kind, findings, language_of(question), **claim),
                    raw=raw,
                    answer=shown.answer,
                    source=shown.answer_source,
                    raw_faults=_faults(raw, question, findings),
                    faults=_faults(shown.answer, question, findings),
                    agrees=compare_with_mask(shown.answer, question, record, image, self.predictor.transform),
                    tokens=len(self.predictor.model.tokenizer.encode(shown.answer)),
                    first_text=first_text,
                    seconds=seconds,
                )
            )
        return answers


def sample(photos: Sequence[ImageRecord], count: int, seed: int) -> list[ImageRecord]:
    """``count`` photos drawn at random, defective and good ones in turn as long as there are both."""
    order = [photos[i] for i in np.random.default_rng(seed).permutation(len(photos))]
    bad, good = ([one for one in order if one.is_anomalous is wanted] for wanted in (True, False))
    shared = min(len(bad), len(good))
    turns = [one for pair in zip(bad, good, strict=False) for one in pair]
    return [*turns, *bad[shared:], *good[shared:]][:count]


def timed(
    predictor: Predictor, image: ImageResult, question: str, history: Sequence[tuple[str, str]]
) -> tuple[Prediction, float, float]:
    """An answer, and the seconds until its first and its last piece."""
    started, first_text = time.perf_counter(), None
    pieces = predictor.stream(image, question, history)
    while True:
        try:
            next(pieces)
            first_text = first_text or time.perf_counter() - started
        except StopIteration as finished:
            seconds = time.perf_counter() - started
            return finished.value, first_text or seconds, seconds


def _faults(answer: str, question: str, findings: Findings) -> tuple[str, ...]:
    return tuple(f"{fault.kind}: {fault.words}" for fault in check_answer(answer, question, findings))


def content(text: str) -> frozenset[str]:
    """The words and numbers of an answer, Chinese ones by character, without order and fillers."""
    return frozenset(re.findall(r"\d+(?:\.\d+)?%?|[a-z']+|[㐀-鿿]", FILLERS.sub(" ", text.lower())))


def compare_with_mask(
    answer: str, question: str, record: ImageRecord, image: ImageResult, transform: ImageTransform
) -> dict[str, bool]:
    """Whether an answer's verdict, place, number and size agree with a photo's label and mask, where it states them.

    Of a defective photo without a mask, only the verdict is compared.
    """
    mask = ground_truth(record, image, transform, "photo").mask
    regions = find_regions(mask.astype(np.float32), 0.5, smallest=0.0)
    actual = Findings("defective" if record.is_anomalous else "good", 0.5, regions, image.class_name)
    claims = ClaimReader(language_of(question), actual, question).claims_of_answer(answer)
    found: dict[str, bool] = {}
    verdicts = [(claim.value != claim.denied, claim.scope) for claim in claims if claim.kind == "verdict"]
    if verdicts := [(bad, scope) for bad, scope in verdicts if bad or scope != "local"]:  # not `none at the left`
        found["verdict"] = any(bad for bad, _ in verdicts) == record.is_anomalous
    if record.is_anomalous and not record.masks:
        return found
    stated = {kind: [claim.value for claim in claims if claim.kind == kind and not claim.denied] for kind in TRUTHS}
    if stated["place"]:
        found["place"] = marks_position(mask, stated["place"][0])
    if number := re.search(r"(\d+) ?(?:defect|处)", answer):
        found["number"] = int(number[1]) == actual.number
    if shares := [(value[0], value[3]) for value in stated["size"] if isinstance(value, tuple)]:
        near = [[area / SIZE_FACTOR <= share <= area * SIZE_FACTOR for area in areas] for share, areas in shares]
        found["size"] = all(map(any, near))
    return found


def answers_frame(answers: Sequence[Answered]) -> pd.DataFrame:
    """A row per answer: 1 or 0 for each of ``SHARES``, NaN where it makes no such claim; and times in seconds."""
    rows = [
        {
            "language": one.language,
            "kind": one.kind,
            "turn": "follow-up" if one.follows else "first",
            "raw true": not one.raw_faults,
            "raw same": content(one.raw) == content(one.reference),
            "true": not one.faults,
            "same": content(one.answer) == content(one.reference),
            "word for word": one.answer == one.reference,
            "corrected": one.source == "corrected",
            "replaced": one.source == "findings",
            "unreadable": any(fault.startswith(UNREADABLE) for fault in one.faults),
            **{name: one.agrees.get(name) for name in TRUTHS},
            "first text": one.first_text,
            "a token": one.seconds / max(1, one.tokens),
        }
        for one in answers
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(SHARES, float))


def write_report(folder: Path | None, head: Sequence[str], facts: Any, answers: Sequence[Answered]) -> str:
    """Writes results.json and .md into a folder, if there is one; returns results.md's content.

    Args:
        head: the page's first lines; ``facts``: what they say, as a dataclass.
    """
    frame, page, tables = answers_frame(answers), list(head), {}
    for by in ("turn", "kind"):
        groups = frame.groupby(["language", by])
        table = groups[SHARES].mean().assign(answers=groups.size()).reset_index()
        tables[by] = json.loads(table.join(groups[TIMES].median().reset_index(drop=True)).to_json(orient="records"))
        table[SHARES] = table[SHARES].map(lambda share: percent(Spread(None if np.isnan(share) else share)))
        page += ["", *markdown_table(table[["language", by, "answers", *SHARES]].astype(str), texts=2)]
    times = [
        f"{row['language']}, {row['turn']}: {row['first text']:.2f} s, {row['a token']:.3f} s" for row in tables["turn"]
    ]
    page += [
        "",
        f"Median time to the first sentence, and a token of the whole answer: {'; '.join(times)}.",
        "",
        MEANING,
    ]
    page += ["", "## Failures", "", f"The first {EXAMPLES} of each kind and language.", "", *_failures(answers)]
    if folder:
        content = {"facts": asdict(facts), **tables, "answers": [asdict(answer) for answer in answers]}
        result = json.dumps(content, indent=1, ensure_ascii=False)
        write_texts(folder, {"results.json": result + "\n", "results.md": "\n".join(page) + "\n"})
    return "\n".join(page) + "\n"


def _failures(answers: Sequence[Answered]) -> list[str]:
    lines, seen = [], Counter[tuple[str, str]]()
    for one in answers:
        failed = one.raw_faults or one.faults or content(one.answer) != content(one.reference)
        seen[one.language, one.kind] += bool(failed)
        if failed and seen[one.language, one.kind] <= EXAMPLES:
            faults = f" ({'; '.join(one.raw_faults)})" if one.raw_faults else ""
            lines += [f"* {one.kind}, {one.photo}: `{one.question}`", f"  * model: {one.raw}{faults}"]
            lines += [f"  * shown ({one.source}): {one.answer}"] if one.answer != one.raw else []
            lines += [f"  * findings: {one.reference}"]
    return lines
