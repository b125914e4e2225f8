"""PandaGPT's visual instructions: conversations about everyday photos (Su et al., 2023; specification 7)."""

import json
import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.records import DatasetError, require_folder
from anomalygpt.datasets.transforms import ImageTransform, load_image

logger = logging.getLogger(__name__)

TurnChoice = Literal["first", "all"]
IMAGE_KEYS = ("image_name", "image")
TURNS_KEYS = ("conversation", "conversations")
ROLES = ("human", "gpt")
IMAGE_TOKEN = "<image>"
CHUNK = 1 << 20  # characters read at once
SEPARATORS = " \t\r\n,"
EXPECTED = 'expected {"image_name": …, "conversation": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}'


@dataclass(frozen=True)
class InstructionSample:
    """A photo and a conversation about it. image: (3, S, S) float32, normalised."""

    image: Tensor
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class InstructionBatch:
    """B photos and their conversations. images: (B, 3, S, S) float32."""

    images: Tensor
    conversations: list[tuple[Turn, ...]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "InstructionBatch":
        """The batch with its photos on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "InstructionBatch":
        """The batch in page-locked memory; a DataLoader with `pin_memory=True` calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "InstructionBatch":
        return replace(self, images=change(self.images))


def collate_instructions(samples: Sequence[InstructionSample]) -> InstructionBatch:
    """B samples -> one batch. Raises ValueError for none."""
    if not samples:
        raise ValueError("a batch needs at least one sample")
    return InstructionBatch(torch.stack([sample.image for sample in samples]), [sample.turns for sample in samples])


class Instructions(Dataset[InstructionSample]):
    """The conversations of a JSON list whose photos are there, in the list's order.

    Each conversation is kept as packed bytes in one block, which worker processes share; the file is read piece by
    piece and never held as a whole.

    conversations: the JSON file. images: the folder of its photos. turns: `first` keeps the first question and
    answer, as the paper does, `all` every turn. Conversations whose photo is missing are left out, and counted once
    in the log.

    Raises:
        DatasetError: the file is no JSON list, an entry (counted from 1) is malformed, or no photo is there at all.
    """

    def __init__(
        self, conversations: Path, images: Path, transform: ImageTransform, turns: TurnChoice = "first"
    ) -> None:
        if turns not in ("first", "all"):
            raise ValueError(f"turns {turns!r}: expected 'first' or 'all'")
        self.images = require_folder(images)
        self.transform = transform
        self._packed = bytearray()
        self._ends = array("q")
        present = {path.name for path in self.images.iterdir()}
        missing, first_missing = 0, ""
        for number, entry in enumerate(_entries(Path(conversations)), start=1):
            name, texts = _read(entry, f"{conversations}: entry {number}", turns)
            if name in present or ("/" in name and (self.images / name).is_file()):
                self._packed += json.dumps([name, *texts]).encode()
                self._ends.append(len(self._packed))
            else:
                missing, first_missing = missing + 1, first_missing or name
        if not self._ends:
            raise DatasetError(
                f"{conversations}: no conversation whose photo is in {self.images}; "
                f"{missing} photos are missing, the first is {first_missing or 'none: the list is empty'}"
            )
        if missing:
            total = missing + len(self._ends)
            logger.warning("%d of %d photos are missing in %s; left out", missing, total, self.images)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> InstructionSample:
        """Conversation `index`. Raises DatasetError when its photo cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} conversations")
        start = self._ends[index - 1] if index else 0
        name, *texts = json.loads(self._packed[start : self._ends[index]])
        turns = tuple(Turn("assistant" if at % 2 else "human", text) for at, text in enumerate(texts))
        return InstructionSample(self.transform(load_image(self.images / name)), turns)


def _entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list, one after the other."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from _decoded(path, file)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _decoded(path: Path, file: TextIO) -> Iterator[Any]:
    text = file.read(CHUNK).lstrip("\ufeff").lstrip()
    if not text.startswith("["):
        raise DatasetError(f"{path}: expected a JSON list, found {text[:20]!r}")
    decoder, number, at, size = json.JSONDecoder(), 0, 1, CHUNK
    while True:
        at = _first_other(text, at)
        if text.startswith("]", at):
            return
        try:
            entry, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            more = file.read(size)
            if not more:
                raise DatasetError(
                    f"{path}: entry {number + 1} is not JSON, or the file is cut off ({error.msg})"
                ) from error
            # Doubled, so that an entry of any length costs few attempts.
            text, at, size = text[at:] + more, 0, 2 * size
            continue
        number, size = number + 1, CHUNK
        yield entry


def _first_other(text: str, at: int) -> int:
    """The place of the first character, from `at` on, that is neither white space nor a comma."""
    while at < len(text) and text[at] in SEPARATORS:
        at += 1
    return at


def _read(entry: Any, where: str, choice: TurnChoice) -> tuple[str, list[str]]:
    """(photo's name, the texts of human and assistant in turn)."""
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is a {type(entry).__name__}; {EXPECTED}")
    name = next((entry[key] for key in IMAGE_KEYS if key in entry), None)
    turns = next((entry[key] for key in TURNS_KEYS if key in entry), None)
    if not isinstance(name, str) or not name:
        raise DatasetError(f"{where} names no photo; {EXPECTED}")
    if not isinstance(turns, list) or len(turns) < len(ROLES):
        raise DatasetError(f"{where} ({name}) has no question and answer; {EXPECTED}")
    kept = turns[: len(ROLES)] if choice == "first" else turns[: len(turns) - len(turns) % len(ROLES)]
    return name, [
        _text(turn, ROLES[at % len(ROLES)], f"{where} ({name}), turn {at + 1}") for at, turn in enumerate(kept)
    ]


def _text(turn: Any, role: str, where: str) -> str:
    if not isinstance(turn, dict) or turn.get("from") != role or not isinstance(turn.get("value"), str):
        raise DatasetError(f"{where} is not of the form {{'from': '{role}', 'value': text}}")
    text = turn["value"].replace(IMAGE_TOKEN, "").strip()
    if not text:
        raise DatasetError(f"{where} says nothing")
    return text
