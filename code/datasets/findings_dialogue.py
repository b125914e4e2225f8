"""Conversations about findings drawn at random: the text that teaches the language model to answer from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.datasets.class_info import class_table, phrase_table, spoken_name
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings import UNKNOWN_CLASS, Findings, Language, RegionFinding, answer_text, findings_text
from anomalygpt.datasets.pairs import Batch

Split = Literal["train", "held_out"]
HELD_OUT = 3  # every third line of a kind is held out

PLACES, FORMS = (tuple(phrase_table("findings_en")["words"][name]) for name in ("place", "form"))
NUMBER_SHARES = (0.5, 0.25, 0.1, 0.06, 0.03, 0.02, 0.02, 0.01, 0.01)  # of 1 to 9 regions
MOST_TURNS = 4
LONGEST_QUESTION = 400  # characters
ALTERNATIVE = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"\$([a-z_]+)")
MAP_SIDE = 224  # pixels, what the prompt learner takes


@dataclass(frozen=True)
class FindingsBatch(Batch):
    """B conversations, and what stands before each."""

    embeddings: Tensor  # (B, D) float32 of unit length, in random directions
    maps: Tensor  # (B, 1, 224, 224) float32 in 0..1, with blobs where the findings are of a defect, at other places
    conversations: list[tuple[Turn, ...]]  # human and assistant in turn; the first one begins with the findings


class FindingsConversations(Dataset[tuple[Tensor, Tensor, tuple[Turn, ...]]]):
    """An epoch's ``count`` conversations, which depend on the seed, the split, the epoch and the index alone.

    Embedding and map are random: a right answer has no other source than the findings' text. ``chinese``: how often a
    conversation begins in Chinese, 0..1.
    """

    def __init__(self, count: int, embed_width: int, seed: int, split: Split = "train", chinese: float = 0.5) -> None:
        self.count, self.embed_width, self.seed, self.split, self.chinese = count, embed_width, seed, split, chinese
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's conversations; workers that are already running see it too."""
        self._shared_epoch[0] = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, tuple[Turn, ...]]:
        rng = np.random.default_rng([self.seed, self.split == "held_out", int(self._shared_epoch[0]), index])
        findings = draw_findings(rng)
        turns = self._turns(findings, rng)
        direction = rng.normal(size=self.embed_width)
        embedding = torch.from_numpy((direction / np.linalg.norm(direction)).astype(np.float32))
        return embedding, torch.from_numpy(draw_map(findings.status == "defective", rng))[None], turns

    def _turns(self, findings: Findings, rng: Generator) -> tuple[Turn, ...]:
        language: Language = "zh" if rng.random() < self.chinese else "en"
        turns: list[Turn] = []
        for number in range(1 + int(rng.integers(MOST_TURNS))):
            if number and rng.random() < 0.1:
                language = "en" if language == "zh" else "zh"
            kind = str(rng.choice(kinds(language)))
            question, claim = draw_question(kind, findings, language, rng, self.split)
            text = question if number else with_findings(question, findings)
            turns += [Turn("human", text), Turn("assistant", answer_text(kind, findings, language, **claim))]
        return tuple(turns)


def with_findings(question: str, findings: Findings) -> str:
    """A conversation's first question as the language model reads it: the findings, then the question."""
    return f"{findings_text(findings)}\n{question}"


def clean_question(question: str) -> str:
    """A question as the language model reads it: on one line, of bounded length, without its control marks."""
    text = " ".join(re.sub(r"<\|?/?(\w+)\|?>", r"\1", question.replace("###", "#")).split())
    return text[:LONGEST_QUESTION].strip() or "?"


def draw_map(defective: bool, rng: Generator) -> NDArray[np.float32]:
    """(224, 224) in 0..1: a low uneven ground, one to four blobs where ``defective``; every fourth map is faint."""
    y, x = np.mgrid[:MAP_SIDE, :MAP_SIDE].astype(np.float32) / MAP_SIDE
    uneven = cv2.resize(rng.normal(size=(8, 8)), (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_CUBIC)
    drawn = rng.uniform(0.05, 0.3) + rng.uniform(0.01, 0.06) * uneven
    for _ in range(int(rng.integers(1, 5)) if defective else 0):
        (left, top), angle = rng.uniform(0.05, 0.95, 2), rng.uniform(0, np.pi)
        length, width = np.exp(rng.uniform(np.log(0.01), np.log(0.2), 2))
        along = (x - left) * np.cos(angle) + (y - top) * np.sin(angle)
        across = (y - top) * np.cos(angle) - (x - left) * np.sin(angle)
        blob = np.exp(-0.5 * ((along / length) ** 2 + (across / width) ** 2))
        drawn = np.maximum(drawn, rng.uniform(0.5, 1) * blob)
    faint = rng.uniform(0.05, 0.5) if rng.random() < 0.25 else 1
    return (faint * drawn).clip(0, 1).astype(np.float32)


def draw_findings(rng: Generator) -> Findings:
    """Findings of a photo that does not exist: every combination of verdict, places, sizes, part and references."""
    image_size = (int(rng.integers(160, 4000)), int(rng.integers(160, 4000)))
    defective = rng.random() < 0.65
    number = 1 + int(rng.choice(len(NUMBER_SHARES), p=NUMBER_SHARES)) if defective else 0
    regions = []
    for _ in range(number):
        place, area = str(rng.choice(PLACES)), float(np.exp(rng.uniform(np.log(3e-4), np.log(0.3 / number))))
        peak, form = float(rng.uniform(1, 4)), FORMS[int(rng.integers(len(FORMS)))]
        regions.append(RegionFinding(place, (0, 0, 1, 1), area, peak, form))
    of_verdict = rng.uniform(0.9, 1) if rng.random() < 0.6 else rng.uniform(0.5, 0.9)
    probability = float(of_verdict if defective else 1 - of_verdict)
    by_area = tuple(sorted(regions, key=lambda region: -region.area))
    class_name, references = _draw_class(rng), int(rng.choice([0, 0, 1, 1, 2, 3, 4, 4, 5, 8, 10, 16, 20, 50, 200]))
    return Findings("defective" if defective else "good", probability, by_area, class_name, references, image_size)


def _draw_class(rng: Generator) -> str:
    drawn = rng.random()
    if drawn < 0.4:
        return UNKNOWN_CLASS
    if drawn < 0.8:
        return str(rng.choice([name for name in map(spoken_name, class_table()["names"]) if name != UNKNOWN_CLASS]))
    words = phrase_table("findings_en")["words"]["classes"]
    return f"{rng.choice(words)} {rng.choice(['', 'A', 'B', '2', '7', 'x3', 'type 4', 'holder', 'cap'])}".strip()


def kinds(language: Language = "en") -> list[str]:
    return list(phrase_table(f"findings_{language}")["questions"])


def draw_question(
    kind: str, findings: Findings, language: Language, rng: Generator, split: Split = "train", careless: float = 0.3
) -> tuple[str, dict[str, str]]:
    """A question of a kind, with mistakes where it is ``careless``, and what it claims (see :func:`answer_text`)."""
    phrases = phrase_table(f"findings_{language}")
    words, every = phrases["words"], phrases["questions"][kind]
    lines = [line for i, line in enumerate(every) if (i % HELD_OUT == HELD_OUT - 1) == (split == "held_out")]
    text = _expand(lines[int(rng.integers(len(lines)))], phrases["vocabulary"], rng)
    claim: dict[str, str] = {}
    if "<place>" in text:
        truthful = findings.places and rng.random() < 0.5
        claim["place"] = place = str(rng.choice(findings.places if truthful else PLACES))
        text = text.replace("<place>", str(rng.choice(words["spoken_places"][place])))
    if "<type>" in text:
        drawn = str(rng.choice(words["types"]))
        text = text.replace("<type>", drawn)
        if kind == "claim_type":  # a kind of defect that is only asked about is not repeated in the answer
            claim["type"] = drawn
    if "<number>" in text:
        number = int(rng.integers(2, 6))
        text = text.replace("<number>", str(number) if rng.random() < 0.5 else words["numbers"][number])
    text = text.replace("<class>", str(rng.choice(words["classes"])))
    text = _tidy(str(rng.choice(words["lead"])) + text + str(rng.choice(words["tail"])), language)
    return clean_question(_careless(text, language, rng) if rng.random() < careless else text), claim


def _expand(line: str, vocabulary: Mapping[str, Sequence[str]], rng: Generator) -> str:
    """One wording of a line: ``$name`` takes a word of the vocabulary, ``{a|b}`` one alternative."""
    while found := NAME.search(line) or ALTERNATIVE.search(line):
        options = found[1].split("|") if found[0].startswith("{") else vocabulary[found[1]]
        line = line[: found.start()] + options[int(rng.integers(len(options)))] + line[found.end() :]
    return line


def _tidy(text: str, language: Language) -> str:
    text = " ".join(text.split())
    if language == "zh":
        text = re.sub(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])", "", text)
        return re.sub(r"([。？！?])[呢？?。]+$", r"\1", text)
    text = re.sub(r"([.?!])\s*\?+$", r"\1", text)
    return text[:1].upper() + text[1:]


def _careless(text: str, language: Language, rng: Generator) -> str:
    if rng.random() < 0.5:
        text = text.rstrip("?？。.!！ ")
    if language == "en":
        text = text.lower() if rng.random() < 0.6 else text
        for _ in range(int(rng.integers(0, 3))):
            inside = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
            if inside:
                i = int(rng.choice(inside))
                swapped, dropped, doubled = text[i + 1] + text[i] + text[i + 2 :], text[i + 1 :], text[i] + text[i:]
                text = text[:i] + (swapped, dropped, doubled)[int(rng.integers(3))]
    return text or "?"
