"""Conversations about everyday photos (specification 7): PandaGPT's or LLaVA's JSON list, or ms-swift's JSON lines."""

import json
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError, require_folder
from anomalygpt.datasets.sample import Batch
from anomalygpt.datasets.transforms import ImageTransform

logger = logging.getLogger(__name__)

TurnChoice = Literal["first", "all"]
EXPECTED = 'expected {"image_name": …, "conversation": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}'


@dataclass(frozen=True)
class InstructionSample:
    """A photo, (3, S, S) float32, normalised, and a conversation about it."""

    image: Tensor
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class InstructionBatch(Batch):
    """B photos, (B, 3, S, S) float32, and their conversations."""

    images: Tensor
    conversations: list[tuple[Turn, ...]]


def collate_instructions(samples: Sequence[InstructionSample]) -> InstructionBatch:
    """B samples -> one batch."""
    return InstructionBatch(torch.stack([sample.image for sample in samples]), [sample.turns for sample in samples])


class Instructions(Dataset[InstructionSample]):
    """The conversations of a file whose photos exist, in its order; those about no photo or several are left out.

    Args:
        conversations: a JSON list, or with the ending ``.jsonl`` an entry per line.
        images: the folder of its photos. Conversations whose photo is missing are left out and counted in the log.
        turns: ``first`` keeps the first question and answer, as the paper does, ``all`` every turn.

    Raises:
        DatasetError: the file is no JSON list, an entry (counted from 1) is malformed, or no photo exists at all.
    """

    def __init__(
        self, conversations: Path, images: Path, transform: ImageTransform, turns: TurnChoice = "first"
    ) -> None:
        self.images = require_folder(images)
        self.transform = transform
        # One block of bytes: worker processes share it, whereas reading Python objects would copy their pages.
        self._packed = bytearray()
        self._ends = array("q")
        present = {path.name for path in self.images.iterdir()}
        missing, without = [], 0
        try:
            text = Path(conversations).read_text(encoding="utf-8-sig")
            by_line = Path(conversations).suffix == ".jsonl"
            entries = [json.loads(line) for line in text.split("\n") if line.strip()] if by_line else json.loads(text)
        except FileNotFoundError:
            raise DatasetError(f"{conversations}: no such file") from None
        except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON
            raise DatasetError(f"{conversations}: is not JSON, or the file is cut off ({error})") from error
        if not isinstance(entries, list):
            raise DatasetError(f"{conversations}: expected a JSON list, found a {type(entries).__name__}")
        for number, entry in enumerate(entries, start=1):
            name, texts = _parse_entry(entry, f"{conversations}: entry {number}", turns)
            if name is None:
                without += 1
            elif name in present or ("/" in name and (self.images / name).is_file()):
                self._packed += json.dumps([name, *texts]).encode()
                self._ends.append(len(self._packed))
            else:
                missing.append(name)
        if not self._ends:
            reason = f"{len(missing)} photos are missing, the first is {missing[0]}" if missing else "none names one"
            raise DatasetError(f"{conversations}: no conversation whose photo is in {self.images}; {reason}")
        if without:
            logger.warning("%s: %d conversations are about no photo, or several; left out", conversations, without)
        if missing:
            total = len(missing) + len(self._ends)
            logger.warning("%d of %d photos are missing in %s; left out", len(missing), total, self.images)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> InstructionSample:
        """Conversation ``index``. Raises :class:`DatasetError` when its photo cannot be read."""
        start = self._ends[index - 1] if index else 0
        name, *texts = json.loads(self._packed[start : self._ends[index]])
        turns = tuple(Turn("assistant" if at % 2 else "human", text) for at, text in enumerate(texts))
        return InstructionSample(self.transform(load_image(self.images / name, PhotoSettings())), turns)


def _parse_entry(entry: Any, where: str, choice: TurnChoice) -> tuple[str | None, list[str]]:
    """The photo's name, None for no photo or several, and the texts of human and assistant in turn."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is a {type(entry).__name__}; {EXPECTED}")
    photos = next((entry[key] for key in ("image_name", "image", "images") if entry.get(key)), None)
    name = photos[0] if isinstance(photos, list) and len(photos) == 1 else photos
    name = name.get("path") if isinstance(name, dict) else name
    turns = next((entry[key] for key in ("conversation", "conversations", "messages") if key in entry), None)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DatasetError(f"{where} has no conversation; {EXPECTED}")
    turns = [turn for turn in turns if turn.get("from", turn.get("role")) != "system"]
    if not isinstance(name, str):
        return None, []
    if len(turns) < 2:
        raise DatasetError(f"{where} ({name}) has no question and answer; {EXPECTED}")
    texts = []
    for at, turn in enumerate(turns[: 2 if choice == "first" else len(turns) - len(turns) % 2]):
        place, roles = f"{where} ({name}), turn {at + 1}", ("gpt", "assistant") if at % 2 else ("human", "user")
        text = turn.get("value", turn.get("content"))
        if turn.get("from", turn.get("role")) not in roles or not isinstance(text, str):
            raise DatasetError(f"{place} is not of the form {{'from': '{roles[0]}', 'value': text}}")
        texts.append(text.replace("<image>", "").strip())
        if not texts[-1]:
            raise DatasetError(f"{place} has no text")
    return name, texts
