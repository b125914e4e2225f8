"""What a data set gives and what a training step takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from anomalygpt.datasets.dialogue import Turn

AnyBatch = TypeVar("AnyBatch", bound="Batch")


class AnomalySample(NamedTuple):
    """One photo with its mask and conversation."""

    image: Tensor  # (3, S, S) float32, normalised
    mask: Tensor  # (1, S, S) float32 in {0, 1}, the target
    class_name: str
    turns: tuple[Turn, ...]  # human and assistant in turn
    is_anomalous: bool
    photo: str = ""


class SamplePair(NamedTuple):
    """A normal photo and a defect of the same class, as training takes them (paper section 4.1).

    Without normal photos of the class, ``normal`` is of another one, and there is no reference.
    """

    normal: AnomalySample
    defect: AnomalySample
    reference: Tensor | None  # (3, S, S) float32, another normal photo of the class


@dataclass(frozen=True)
class Batch:
    """A batch of which all tensors move together."""

    def to(self: AnyBatch, device: torch.device | str) -> AnyBatch:
        """The batch with its tensors on ``device``."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)})


@dataclass(frozen=True)
class AnomalyBatch(Batch):
    """B pairs in the order normal 0, defect 0, normal 1, defect 1, …"""

    images: Tensor  # (2B, 3, S, S) float32
    masks: Tensor  # (2B, 1, S, S) float32 in {0, 1}
    class_names: list[str]
    conversations: list[tuple[Turn, ...]]
    references: Tensor | None  # (B, 3, S, S) float32; None where not every pair has one
    photos: tuple[str, ...] = ()  # the files of the defects, or of what they are simulated on, B


def collate_pairs(pairs: Sequence[SamplePair]) -> AnomalyBatch:
    """B pairs -> one batch of 2B images."""
    samples = [sample for pair in pairs for sample in (pair.normal, pair.defect)]
    references = [pair.reference for pair in pairs if pair.reference is not None]
    return AnomalyBatch(
        images=torch.stack([sample.image for sample in samples]),
        masks=torch.stack([sample.mask for sample in samples]),
        class_names=[sample.class_name for sample in samples],
        conversations=[sample.turns for sample in samples],
        references=torch.stack(references) if len(references) == len(pairs) else None,
        photos=tuple(pair.defect.photo for pair in pairs),
    )
