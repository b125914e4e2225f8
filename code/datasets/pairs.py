"""Training pairs of a normal photo and a defect: a simulated one, or a real one with the mask that people drew."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from anomalygpt.datasets.dialogue import Turn, Wording
from anomalygpt.datasets.drawn import draw_defects
from anomalygpt.datasets.masks import load_mask
from anomalygpt.datasets.photos import current_settings, load_image
from anomalygpt.datasets.records import DatasetError, ImageRecord
from anomalygpt.datasets.regions import position_name, positions_of
from anomalygpt.datasets.synthesis import TRAINING_THRESHOLD, Flags, Pixels, nsa_settings, simulate
from anomalygpt.datasets.transforms import ImageTransform

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
    """A defect with a normal photo of its class (paper section 4.1), or of another class where that has none."""

    normal: AnomalySample
    defect: AnomalySample
    reference: Tensor | None  # (3, S, S) float32, another normal photo of the class, if any


@dataclass(frozen=True)
class Batch:
    """A batch of which all tensors move together."""

    @classmethod
    def of(cls: type[AnyBatch], samples: Sequence[Sequence[Any]]) -> AnyBatch:
        """Samples that have the batch's fields in order -> one batch: tensors are stacked, all else is listed."""
        columns = zip(*samples, strict=True)
        return cls(*(torch.stack(each) if torch.is_tensor(each[0]) else list(each) for each in columns))

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


class TrainingPairs(Dataset[SamplePair]):
    """Pairs of each normal photo with a simulated defect (paper section 3.4) or, where ``real``, of each marked defect.

    They depend on the seed, the epoch and the index alone, whatever the number of loader workers. Pasted patches come
    from photos of ``source``; ``drawn_share``: how often a defect is drawn (``drawn.py``) in place of such a patch.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: ImageTransform,
        seed: int,
        source: Literal["same", "any"] = "same",
        drawn_share: float = 0.0,
        wording: Wording | None = None,
        real: bool = False,
    ) -> None:
        self.records, self.transform, self.seed, self.real = list(records), transform, seed, real
        self.source, self.drawn_share, self.wording = source, drawn_share, wording or Wording()
        self.photo_settings = current_settings()  # for loader processes
        self.cached_photos, self._shown = 0, dict[int, Pixels]()  # decoded photos, of each loader process
        self._normal = [index for index, record in enumerate(self.records) if not record.is_anomalous]
        self._paired = [index for index, record in enumerate(self.records) if record.is_anomalous == real]
        self._normal_of_class = defaultdict[str, list[int]](list)
        for index in self._normal:
            self._normal_of_class[self.records[index].class_name].append(index)
        if real and not (self._paired and self._normal):
            found = f"{len(self._paired)} defects with a mask and {len(self._normal)} normal photos"
            raise DatasetError(f"{found}; pairs need both")
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's defects and conversations; workers that are already running see it too."""
        self._shared_epoch[0] = epoch

    def __len__(self) -> int:
        return len(self._paired)

    def __getitem__(self, index: int) -> SamplePair:
        """Pair ``index``. Raises :class:`DatasetError` when a photo or a mask cannot be read."""
        if get_worker_info() is not None:
            # OpenCV's own threads do not survive a worker's fork, and the workers share the cores already.
            cv2.setNumThreads(0)
        return (self._real_pair if self.real else self._simulated_pair)(self._paired[index])

    def _simulated_pair(self, index: int) -> SamplePair:
        rng, class_name, pixels = self._generator(index), self.records[index].class_name, self._pixels(index)
        same = self._normal_of_class[class_name]
        reference = self._pixels(_another(index, same, rng))
        patches = self._pixels(_another(index, same if self.source == "same" else self._normal, rng))
        info = self.wording.infos.get(class_name)
        settings = nsa_settings(class_name, info.nsa.model_dump(exclude_unset=True) if info else None)
        # Fraction 0 draws no number, so that the paper's pairs do not depend on the option.
        draws = self.drawn_share > 0 and rng.random() < self.drawn_share
        simulated = draw_defects(pixels, settings, rng) if draws else None
        if simulated is None or not simulated.boxes:
            simulated = simulate(pixels, patches, settings, rng)
        target = simulated.mask > TRAINING_THRESHOLD
        positions = [position_name(box, (self.transform.size, self.transform.size)) for box in simulated.boxes]
        # A pasted patch is of no kind that has a name, so without drawn defects no question asks for the kind.
        no_defect = "" if self.drawn_share else None
        kind = (simulated.kind or None) if simulated.boxes else no_defect
        normal = self._sample(index, pixels, np.zeros_like(target), (), no_defect, rng)
        defect = self._sample(index, simulated.image, target, positions, kind, rng)
        return SamplePair(normal, defect, self.transform.normalise(reference))

    def _real_pair(self, index: int) -> SamplePair:
        # A class without normal photos (CrackForest) borrows one of any class, which is no reference.
        own = self._normal_of_class.get(self.records[index].class_name)
        choices = own or self._normal
        rng = self._generator(index, 1)  # another stream than the conversation's
        normal, other = (choices[int(at)] for at in rng.choice(len(choices), 2, replace=len(choices) == 1))
        reference = self.transform.normalise(self._pixels(other)) if own else None
        return SamplePair(self._real_sample(normal), self._real_sample(index), reference)

    def _real_sample(self, index: int) -> AnomalySample:
        record, target = self.records[index], np.zeros((self.transform.size, self.transform.size), bool)
        if record.is_anomalous:
            mask = self.transform.mask(load_mask(record))[0].numpy()
            # Of a hair-thin crack, every pixel that it touches counts.
            target = mask > (TRAINING_THRESHOLD if mask.max() > TRAINING_THRESHOLD else 0)
            if not target.any():
                raise DatasetError(f"{record.masks[0]}: marks nothing of what the model sees of {record.image.name}")
        defect = (record.defect or None) if record.is_anomalous else ""
        return self._sample(index, self._pixels(index), target, positions_of(target), defect, self._generator(index))

    def _generator(self, *numbers: int) -> Generator:
        return np.random.default_rng([self.seed, int(self._shared_epoch[0]), *numbers])

    def _pixels(self, index: int) -> Pixels:
        """The photo of a record as the model sees it, uint8 (S, S, 3); not to be written to."""
        if index in self._shown:
            return self._shown[index]
        pixels = np.array(self.transform.shown(load_image(self.records[index].image, self.photo_settings)))
        pixels.setflags(write=False)
        if len(self._shown) < self.cached_photos:
            self._shown[index] = pixels
        return pixels

    def _sample(
        self, index: int, pixels: Pixels, target: Flags, positions: Sequence[str], defect: str | None, rng: Generator
    ) -> AnomalySample:
        """A sample of the record's class; ``target`` is (S, S), ``positions`` and ``defect`` as in :class:`Wording`."""
        name, photo = self.records[index].class_name, str(self.records[index].image)
        turns = self.wording.conversation(name, positions, float(target.mean()), defect, rng)
        mask = torch.from_numpy(target.astype(np.float32))[None]  # (1, S, S)
        return AnomalySample(self.transform.normalise(pixels), mask, name, turns, bool(target.any()), photo)


def _another(index: int, choices: Sequence[int], rng: Generator) -> int:
    """One of the choices other than ``index``; ``index`` itself where there is no other."""
    if len(choices) == 1:
        return index
    drawn = choices[int(rng.integers(len(choices) - 1))]
    return choices[-1] if drawn == index else drawn
