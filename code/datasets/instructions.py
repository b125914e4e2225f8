"""Conversations about everyday photos (specification 7): PandaGPT's or LLaVA's JSON list, or ms-swift's JSON lines."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.pairs import Batch
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError, require_folder
from anomalygpt.datasets.transforms import ImageTransform

logger = logging.getLogger(__name__)

TurnChoice = Literal["first", "all"]
EXPECTED = '{"image_name": …, "conversation": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}'
OTHER_ROLES = {"user": "human", "gpt": "assistant"}


class InstructionSample(NamedTuple):
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
    images, conversations = zip(*samples, strict=True)
    return InstructionBatch(torch.stack(images), list(conversations))


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
        self.images, self.transform = require_folder(images), transform
        self._entries = []
        missing, without = [], 0
        for number, entry in enumerate(_read_list(Path(conversations)), start=1):
            name, parsed = _parse_entry(entry, f"{conversations}: entry {number}", turns)
            if name is None:
                without += 1
            elif (self.images / name).is_file():
                self._entries.append((name, parsed))
            else:
                missing.append(name)
        if not self._entries:
            reason = f"{len(missing)} photos are missing, the first is {missing[0]}" if missing else "none names one"
            raise DatasetError(f"{conversations}: no conversation whose photo is in {self.images}; {reason}")
        if without:
            logger.warning("%s: %d conversations are about no photo, or several; left out", conversations, without)
        if missing:
            total = len(missing) + len(self._entries)
            logger.warning("%d of %d photos are missing in %s; left out", len(missing), total, self.images)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> InstructionSample:
        """Conversation ``index``. Raises :class:`DatasetError` when its photo cannot be read."""
        name, turns = self._entries[index]
        return InstructionSample(self.transform(load_image(self.images / name, PhotoSettings())), turns)


def _read_list(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        by_line = path.suffix == ".jsonl"
        entries = [json.loads(line) for line in text.split("\n") if line.strip()] if by_line else json.loads(text)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: neither UTF-8 nor JSON
        raise DatasetError(f"{path}: is not JSON, or the file is cut off ({error})") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{path}: expected a JSON list, found a {type(entries).__name__}")
    return entries


def _parse_entry(entry: Any, where: str, choice: TurnChoice) -> tuple[str | None, tuple[Turn, ...]]:
    """The photo's name, None for no photo or several, and the turns, which end with an answer."""
    try:
        photos = next((entry[key] for key in ("image_name", "image", "images") if entry.get(key)), None)
        name = photos[0] if isinstance(photos, list) and len(photos) == 1 else photos
        name = name.get("path") if isinstance(name, dict) else name
        said = next(entry[key] for key in ("conversation", "conversations", "messages") if key in entry)
        said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in said]
        if not isinstance(name, str):
            return None, ()
        where += f" ({name})"
        said = [turn for turn in said if turn[0] != "system"]
        said = said[: 2 if choice == "first" else len(said) - len(said) % 2]
        turns = tuple(Turn(OTHER_ROLES.get(role, role), text.replace("<image>", "").strip()) for role, text in said)
        expected = ["human", "assistant"] * (len(turns) // 2)
        if not turns or [turn.role for turn in turns if turn.text] != expected:
            raise ValueError
    except (AttributeError, StopIteration, TypeError, ValueError):
        raise DatasetError(f"{where} is not of the form {EXPECTED}") from None
    return name, turns
