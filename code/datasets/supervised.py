"""Training pairs from real defects: photos whose masks people drew (the paper's supervised setting)."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from anomalygpt.datasets.dialogue import positions_of
from anomalygpt.datasets.records import DatasetError, ImageRecord, first_offenders
from anomalygpt.datasets.sample import AnomalySample, SamplePair
from anomalygpt.datasets.simulated import PhotoCache, hold_back, normal_split, one_thread_in_workers
from anomalygpt.datasets.transforms import TRAINING_THRESHOLD, ImageTransform, load_mask
from anomalygpt.datasets.wording import Wording

NORMAL_STREAM = 1  # keeps the draw of normal photos apart from that of the wording


class SupervisedSamples(Dataset[AnomalySample]):
    """One sample a photo: its real mask as the target, and questions and answers that follow from it.

    The target is `mask > 0.3` in the transform's geometry. Where that leaves nothing of a real defect, such as a
    hair-thin crack, every pixel that it touches counts, so that no answer denies it.

    records: normal photos, and defects with a mask; a defect without one raises DatasetError. seed: with the epoch
    and the index it decides the wording, whatever the number of workers. wording, cache_bytes: as in `SimulatedPairs`.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: ImageTransform,
        seed: int,
        wording: Wording | None = None,
        cache_bytes: int = 1 << 30,
    ) -> None:
        if not records:
            raise DatasetError("no records; expected normal photos and defects with a mask")
        without = [record.image for record in records if record.is_anomalous and record.mask is None]
        if without:
            raise DatasetError(f"{len(without)} of {len(records)} records lack a mask: {first_offenders(without)}")
        self.records = list(records)
        self.transform = transform
        self.seed = seed
        self.wording = wording or Wording()
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._photos = PhotoCache(transform, (record.image for record in records), cache_bytes)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's wording; workers that are already running see it too."""
        self._shared_epoch[0] = epoch

    def generator(self, *numbers: int) -> np.random.Generator:
        """The random generator that belongs to these numbers in this epoch."""
        return np.random.default_rng([self.seed, int(self._shared_epoch[0]), *numbers])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> AnomalySample:
        """The sample of photo `index`. Raises DatasetError when photo or mask cannot be read, or the mask is empty."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        one_thread_in_workers()
        record = self.records[index]
        rng = self.generator(index)
        target = self._target(record)
        mask = torch.from_numpy(target.astype(np.float32))[None]  # (1, S, S)
        turns = self.wording.turns(
            record.class_name, positions_of(target), float(target.mean()), self._defect(record), rng
        )
        return AnomalySample(self.image(record), mask, record.class_name, turns, bool(target.any()))

    @staticmethod
    def _defect(record: ImageRecord) -> str | None:
        return record.defect if record.is_anomalous else ""

    def image(self, record: ImageRecord) -> torch.Tensor:
        """A photo as the model takes it, (3, S, S) float32."""
        return self.transform.normalise(self._photos.pixels(record.image))

    def _target(self, record: ImageRecord) -> NDArray[np.bool_]:
        """(S, S) bool; empty exactly for a normal photo."""
        if not record.is_anomalous or record.mask is None:
            return np.zeros((self.transform.size, self.transform.size), bool)
        mask = self.transform.mask(load_mask(record))[0].numpy()
        target = mask > TRAINING_THRESHOLD
        if not target.any():
            target = mask > 0
        if not target.any():
            raise DatasetError(f"{record.mask}: marks nothing of what is seen of {record.image.name}")
        return target


class SupervisedPairs(Dataset[SamplePair]):
    """One pair a defect photo: a drawn normal photo, the defect, and another normal photo as the reference.

    They are of the defect's class. A class without normal photos (CrackForest) borrows one of any class, and its pairs
    have no reference: another class's photo says nothing about this one.

    samples: must hold at least one defect and one normal photo.
    """

    def __init__(self, samples: SupervisedSamples) -> None:
        self.samples = samples
        self._defects = [index for index, record in enumerate(samples.records) if record.is_anomalous]
        self._normal = [index for index, record in enumerate(samples.records) if not record.is_anomalous]
        if not self._defects or not self._normal:
            raise DatasetError(
                f"{len(self._defects)} defects with a mask and {len(self._normal)} normal photos; pairs need both"
            )
        self._normal_of_class: defaultdict[str, list[int]] = defaultdict(list)
        for index in self._normal:
            self._normal_of_class[samples.records[index].class_name].append(index)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's normal photos and wording; workers that are already running see it too."""
        self.samples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._defects)

    def __getitem__(self, index: int) -> SamplePair:
        """The pair of defect `index`. Raises DatasetError as `SupervisedSamples` does."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        defect = self._defects[index]
        own = self._normal_of_class.get(self.samples.records[defect].class_name)
        choices = own or self._normal
        rng = self.samples.generator(defect, NORMAL_STREAM)
        normal, other = (choices[int(at)] for at in rng.choice(len(choices), 2, replace=len(choices) == 1))
        reference = self.samples.image(self.samples.records[other]) if own else None
        return SamplePair(self.samples[normal], self.samples[defect], reference)


class Supervised(NamedTuple):
    """Records to train on, and records held back to validate on."""

    train: list[ImageRecord]
    validation: list[ImageRecord]


def supervised_split(records: Sequence[ImageRecord], fraction: float, seed: int) -> Supervised:
    """Divides marked defects, of whatever split, and normal photos that are not test photos.

    Data sets for anomaly detection keep their defects in the test split, so these are trained on: such a model must be
    measured on other data. Normal test photos are neither trained on nor validated on.

    fraction: of each class's defects of a name, and of each class's normal photos, that is held back: rounded, at
    least one where there are two or more, and never all; 0 holds nothing back. A class with a validation split of its
    own has those normal photos held back, whatever the fraction.
    """
    train, validation = normal_split(records, fraction, seed)
    groups: defaultdict[tuple[str, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        if record.is_anomalous and record.mask is not None:
            groups[record.class_name, record.defect].append(record)
    for name, group in sorted(groups.items()):
        kept, held = hold_back(group, fraction, "/".join(name), seed)
        train, validation = train + kept, validation + held
    return Supervised(train, validation)
