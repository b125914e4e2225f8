"""Conversations about everyday photos (specification 7): PandaGPT's or LLaVA's JSON list, or ms-swift's JSON lines."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.config.settings import PhotoSettings
from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.pairs import Batch
from anomalygpt.datasets.photos import decoding, load_image
from anomalygpt.datasets.records import DatasetError, require_folder
from anomalygpt.datasets.transforms import ImageTransform

logger = logging.getLogger(__name__)

EXPECTED = '{"image_name": …, "conversation": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}'
OTHER_ROLES = {"user": "human", "gpt": "assistant"}


@dataclass(frozen=True)
class InstructionBatch(Batch):
    """B photos, (B, 3, S, S) float32, normalised, and a conversation about each."""

    images: Tensor
    conversations: list[tuple[Turn, ...]]


class Instructions(Dataset[tuple[Tensor, tuple[Turn, ...]]]):
    """Photos of a folder, (3, S, S), each with a conversation, in the order of a file.

    :class:`DatasetError` for a bad entry; conversations about no photo, several, or one that is missing are left out
    and counted in the log. Of each, the first question and answer are taken, as in the paper.
    """

    def __init__(self, conversations: Path, images: Path, transform: ImageTransform) -> None:
        self.images, self.transform = require_folder(images), transform
        entries = enumerate(_read_list(Path(conversations)), start=1)
        parsed = [_parse_entry(entry, f"{conversations}: entry {number}") for number, entry in entries]
        named = [(name, said) for name, said in parsed if name is not None]
        self._entries = [(name, said) for name, said in named if (self.images / name).is_file()]
        if not self._entries:
            reason = f"{len(named)} photos are missing, the first is {named[0][0]}" if named else "none names one"
            raise DatasetError(f"{conversations}: no conversation whose photo is in {self.images}; {reason}")
        if without := len(parsed) - len(named):
            logger.warning("%s: %d conversations are about no photo, or several; left out", conversations, without)
        if missing := len(named) - len(self._entries):
            logger.warning("%d of %d photos are missing in %s; left out", missing, len(named), self.images)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[Turn, ...]]:
        name, turns = self._entries[index]
        return self.transform(load_image(self.images / name, PhotoSettings())), turns


def _read_list(path: Path) -> list[Any]:
    with decoding(path, "a list of conversations"):
        text = path.read_text(encoding="utf-8-sig")
        by_line = path.suffix == ".jsonl"
        entries = [json.loads(line) for line in text.split("\n") if line.strip()] if by_line else json.loads(text)
        if not isinstance(entries, list):
            raise ValueError(f"found a {type(entries).__name__}")
        return entries


def _parse_entry(entry: Any, where: str) -> tuple[str | None, tuple[Turn, ...]]:
    """The photo's name, None for no photo or several, and the first question and answer."""
    try:
        photos = next((entry[key] for key in ("image_name", "image", "images") if entry.get(key)), None)
        name = photos[0] if isinstance(photos, list) and len(photos) == 1 else photos
        name = name.get("path") if isinstance(name, dict) else name
        said = next(entry[key] for key in ("conversation", "conversations", "messages") if key in entry)
        said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in said]
        if not isinstance(name, str):
            return None, ()
        where += f" ({name})"
        said = [turn for turn in said if turn[0] != "system"][:2]
        turns = tuple(Turn(OTHER_ROLES.get(role, role), text.replace("<image>", "").strip()) for role, text in said)
        if [turn.role for turn in turns if turn.text] != ["human", "assistant"]:
            raise ValueError
    except (AttributeError, StopIteration, TypeError, ValueError):
        raise DatasetError(f"{where} is not of the form {EXPECTED}") from None
    return name, turns
