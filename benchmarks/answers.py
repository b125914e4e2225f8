"""Answers in words: ``python benchmarks/answers.py --data ROOT --shots 4 --photos 2 --out DIR``.

Asks every kind of question about some photos of each class, and compares the answers with the findings and the masks.
"""

import argparse
import json
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from anomalygpt.config.load import load_config
from anomalygpt.datasets.build import INDEXERS
from anomalygpt.datasets.findings import LANGUAGES, Findings, Language, answer_text, language_of
from anomalygpt.datasets.findings_dialogue import draw_question, kinds
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import ImageRecord
from anomalygpt.datasets.regions import GRID
from anomalygpt.distributed import Process
from anomalygpt.evaluation.cells import Cell, Plan, build_predictor, photo_name, test_photos
from anomalygpt.evaluation.evaluate import MVTEC_THRESHOLD
from anomalygpt.evaluation.tables import fact_lines, facts_of, markdown_table, percent
from anomalygpt.files import write_files
from anomalygpt.inference.answer_check import check_answer
from anomalygpt.inference.answer_claims import ClaimReader
from anomalygpt.inference.language_models import History
from anomalygpt.inference.predictor import Predictor
from anomalygpt.inference.regions import find_regions
from anomalygpt.inference.results import ImageResult, Prediction
from anomalygpt.model.build import choose_device

TRUTHS = ["verdict", "place", "number", "size"]  # the claims that are compared with the label and the mask
UNREADABLE = ("language", "empty", "repetition", "cut_off", "markup")  # faults of form
SIZE_FACTOR = 2.0  # an area is right within this factor of the mask's
EXAMPLES = 3  # failures shown of each kind of question and language
FILLERS = re.compile(r"\b(?:the|an?|there|is|are|its?|in|of|image|that|and|so)\b|图[中像]|[在的是有处了共个和、；]")
SHARES = ["raw true", "raw same", "true", "same", "word for word", "corrected", "replaced", "unreadable", *TRUTHS]
TIMES = ["first text", "a token"]


@dataclass(frozen=True)
class Answered:
    """One question about a photo, and its answer.

    Attributes:
        kind: of question, a key of the phrases' ``questions``; ``reference``: the findings' own sentence for it.
        follows: whether it follows up on another question.
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

    def row(self) -> dict[str, object]:
        """1 or 0 for each of ``SHARES``, None where the answer makes no such claim; and times in seconds."""
        return {
            "language": self.language,
            "kind": self.kind,
            "turn": "follow-up" if self.follows else "first",
            "raw true": not self.raw_faults,
            "raw same": content(self.raw) == content(self.reference),
            "true": not self.faults,
            "same": content(self.answer) == content(self.reference),
            "word for word": self.answer == self.reference,
            "corrected": self.source == "corrected",
            "replaced": self.source == "findings",
            "unreadable": any(fault.startswith(UNREADABLE) for fault in self.faults),
            **{name: self.agrees.get(name) for name in TRUTHS},
            "first text": self.first_text,
            "a token": self.seconds / max(1, self.tokens),
        }


@dataclass(frozen=True)
class WordsEvaluator:
    """Measures one cell after the other; ``photos``: how many of each class, drawn by the plan's seed."""

    predictor: Predictor
    records: Sequence[ImageRecord]
    plan: Plan
    root: Path
    photos: int

    def measure(self, cell: Cell) -> list[Answered]:
        """Asks about a class's photos; raises as ``Evaluator.measure``."""
        answers = []
        references = self.plan.references(self.records, cell)
        self.predictor.set_references([load_image(record.image) for record in references])
        for record in sample(test_photos(self.records, cell.class_name), self.photos, self.plan.seed):
            name = photo_name(record, self.root)
            image = self.predictor.inspect(load_image(record.image), record.class_name)
            for language in LANGUAGES:
                asked: list[Answered] = []
                seed = cell.seed_of(self.plan.seed, f"{name}/{language}")
                rng = np.random.default_rng(seed)
                for kind in rng.permutation(kinds(language)).tolist():
                    # Conversations of two questions: one begins, the next follows up on it.
                    history = [(asked[-1].question, asked[-1].answer)] if len(asked) % 2 else []
                    question, claim = draw_question(kind, image.findings, language, rng, "held_out")
                    reference = answer_text(kind, image.findings, language_of(question), **claim)
                    about = {"photo": name, "language": language, "kind": kind, "reference": reference}
                    asked.append(self._ask(record, image, question, history, seed + len(asked), about))
                answers += asked
        return answers

    def _ask(
        self, record: ImageRecord, image: ImageResult, question: str, history: History, seed: int, about: dict[str, Any]
    ) -> Answered:
        torch.manual_seed(seed)
        shown, first_text, seconds = timed(self.predictor, image, question, history)
        tokenizer = self.predictor.model.tokenizer
        raw, model = shown.answer, self.predictor.language_model
        if shown.answer_source != "model" and model:  # the check has interrupted it
            torch.manual_seed(seed)
            *_, raw = model.texts(image, question, history)
        faults = [check_answer(answer, question, image.findings) for answer in (raw, shown.answer)]
        raw_faults, shown_faults = (tuple(f"{fault.kind}: {fault.words}" for fault in found) for found in faults)
        return Answered(
            **about,
            follows=bool(history),
            question=question,
            raw=raw,
            answer=shown.answer,
            source=shown.answer_source,
            raw_faults=raw_faults,
            faults=shown_faults,
            agrees=compare_with_mask(shown.answer, question, record, image),
            tokens=len(tokenizer.encode(shown.answer) if tokenizer else shown.answer),
            first_text=first_text,
            seconds=seconds,
        )


def sample(photos: Sequence[ImageRecord], count: int, seed: int) -> list[ImageRecord]:
    """``count`` photos drawn at random, defective and good ones in turn as long as there are both."""
    drawn = [photos[i] for i in np.random.default_rng(seed).permutation(len(photos))]
    bad, good = ([one for one in drawn if one.is_anomalous is label] for label in (True, False))
    return [one for pair in zip_longest(bad, good) for one in pair if one][:count]


def timed(predictor: Predictor, image: ImageResult, question: str, history: History) -> tuple[Prediction, float, float]:
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


def content(text: str) -> frozenset[str]:
    """The words and numbers of an answer, Chinese ones by character, without order and fillers."""
    return frozenset(re.findall(r"\d+(?:\.\d+)?%?|[a-z']+|[㐀-鿿]", FILLERS.sub(" ", text.lower())))


def marks_position(target: NDArray[np.bool_], position: str) -> bool:
    """Whether a mask (H, W) marks any pixel, by its centre, in the ninth of the photo that ``position`` names."""
    cells = (3 * (np.argwhere(target) + 0.5) / target.shape).astype(int)
    return bool((cells == np.argwhere(np.array(GRID) == position)).all(axis=1).any())


def compare_with_mask(answer: str, question: str, record: ImageRecord, image: ImageResult) -> dict[str, bool]:
    """Whether an answer's verdict, place, number and size agree with a photo's label and mask, where it states them.

    Of a defective photo without a mask, only the verdict is compared.
    """
    mask = np.zeros(image.map.shape, dtype=bool)
    if record.masks:
        resized = load_mask(record).resize(image.photo.size, Image.Resampling.BILINEAR)
        mask = np.asarray(resized, dtype=np.float32) / 255 > MVTEC_THRESHOLD
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


def write_report(folder: Path | None, facts: dict[str, Any], answers: Sequence[Answered]) -> str:
    """Writes results.json and .md into a folder, if there is one; returns results.md's content."""
    frame = pd.DataFrame(answer.row() for answer in answers).astype(dict.fromkeys(SHARES, float))
    page, tables = [f"# Answers in words: {facts['config']}", "", *fact_lines(facts)], {}
    for by in ("turn", "kind"):
        groups = frame.groupby(["language", by])
        table = groups[SHARES].mean().assign(answers=groups.size()).join(groups[TIMES].median()).reset_index()
        tables[by] = json.loads(table.to_json(orient="records"))
        table[SHARES] = table[SHARES].map(percent)
        page += ["", *markdown_table(table[["language", by, "answers", *SHARES]].astype(str), texts=2)]
    times = [f"{one['language']} {one['turn']} {one[TIMES[0]]:.2f} and {one[TIMES[1]]:.3f} s" for one in tables["turn"]]
    page += ["", f"Median time to the first sentence, and of a token of the whole answer: {', '.join(times)}."]
    page += ["The columns: docs/evaluation.md.", "", f"## The first {EXAMPLES} failures of each kind and language", ""]
    failed = [one for one in answers if one.raw_faults or not one.row()["same"]]
    seen = Counter[tuple[str, str]]()
    for one in failed:
        seen[one.language, one.kind] += 1
        if seen[one.language, one.kind] <= EXAMPLES:
            faults = f" ({'; '.join(one.raw_faults)})" if one.raw_faults else ""
            page += [f"* {one.kind}, {one.photo}: `{one.question}`", f"  * model: {one.raw}{faults}"]
            page += [f"  * shown ({one.source}): {one.answer}"] * (one.answer != one.raw)
            page += [f"  * findings: {one.reference}"]
    if folder:
        result = {"facts": facts, **tables, "answers": [asdict(answer) for answer in answers]}
        write_files(folder, {"results.json": result, "results.md": "\n".join([*page, ""])})
    return "\n".join(page) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all classes, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config", default="compact")
    add("--set", nargs="+", default=[], metavar="key.sub=value", help="settings to change")
    add("--data", type=Path, required=True, metavar="ROOT")
    add("--kind", choices=INDEXERS, default="mvtec")
    add("--shots", type=int, default=0, metavar="K", help="references per class")
    add("--photos", type=int, default=2, metavar="N", help="of each class")
    add("--device", default="auto")
    add("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    root = arguments.data.parent if arguments.kind == "csv" else arguments.data
    records = INDEXERS[arguments.kind](arguments.data, None)
    plan = Plan((arguments.shots,), seed=config.seed)
    plan.check(records)
    process = Process(0, 1, choose_device(arguments.device))
    predictor = build_predictor(config, process, with_llm=True)
    evaluator = WordsEvaluator(predictor, records, plan, root, arguments.photos)
    answers, cells = [], []
    for cell in plan.cells(records):
        started = time.monotonic()
        found = evaluator.measure(cell)
        names = {answer.photo for answer in found}
        cells.append({"class": cell.class_name, "names": names, "seconds": time.monotonic() - started})
        answers += found
        print(f"{cell.class_name}: {len(found)} answers", file=sys.stderr, flush=True)
    facts = facts_of(config, shlex.join(["python", *sys.argv]), process, cells)
    photos = sum(len(cell["names"]) for cell in cells)
    facts |= {"references": str(plan), "data": f"{arguments.data}, {photos} photos"}
    print(write_report(arguments.out, facts, answers), end="")


if __name__ == "__main__":
    main()
