"""Training samples of text alone: conversations about drawn findings, each with a map and an embedding of no photo."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from anomalygpt.datasets.dialogue import Turn
from anomalygpt.datasets.findings_dialogue import Split, draw_conversation, draw_findings
from anomalygpt.datasets.sample import Batch

MAP_SIDE = 224  # pixels, what the prompt learner takes


@dataclass(frozen=True)
class FindingsSample:
    """A conversation and what stands before it.

    Attributes:
        embedding: (D,) float32 of unit length, in a random direction.
        map: (1, 224, 224) float32 in 0..1, with blobs where the findings are of a defect, at other places.
        turns: human and assistant in turn; the first one begins with the findings.
    """

    embedding: Tensor
    map: Tensor
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class FindingsBatch(Batch):
    """B samples: embeddings (B, D), maps (B, 1, 224, 224), and B conversations."""

    embeddings: Tensor
    maps: Tensor
    conversations: list[tuple[Turn, ...]]


def collate_findings(samples: Sequence[FindingsSample]) -> FindingsBatch:
    """B samples -> one batch."""
    embeddings, maps = (torch.stack([getattr(each, name) for each in samples]) for name in ("embedding", "map"))
    return FindingsBatch(embeddings, maps, [sample.turns for sample in samples])


class FindingsConversations(Dataset[FindingsSample]):
    """Conversations that depend on the seed, the split, the epoch and the index alone.

    Embedding and map are random, so that the findings' text is the only source of a right answer.

    Args:
        count: of an epoch's conversations.
        embed_width: D of the image's embedding.
        split: which wordings of the questions are drawn.
        chinese: how often a conversation begins in Chinese, 0..1.
    """

    def __init__(self, count: int, embed_width: int, seed: int, split: Split = "train", chinese: float = 0.5) -> None:
        self.count, self.embed_width, self.seed = count, embed_width, seed
        self.split, self.chinese = split, chinese
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's conversations; workers that are already running see it too."""
        self._shared_epoch[0] = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FindingsSample:
        rng = np.random.default_rng([self.seed, self.split == "held_out", int(self._shared_epoch[0]), index])
        findings = draw_findings(rng)
        turns = tuple(draw_conversation(findings, rng, self.split, self.chinese))
        direction = rng.normal(size=self.embed_width)
        embedding = torch.from_numpy((direction / np.linalg.norm(direction)).astype(np.float32))
        return FindingsSample(embedding, torch.from_numpy(draw_map(findings.status == "defective", rng))[None], turns)


def draw_map(defective: bool, rng: np.random.Generator) -> NDArray[np.float32]:
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
