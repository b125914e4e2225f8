"""The training data of the paper: each normal photo beside itself with a simulated defect (paper section
3.4).
"""

import math
import mmap
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from anomalygpt.datasets.dialogue import position_name
from anomalygpt.datasets.drawn import draw_defects
from anomalygpt.datasets.records import DatasetError, ImageRecord, first_offenders, in_order
from anomalygpt.datasets.sample import AnomalySample, SamplePair
from anomalygpt.datasets.synthesis import NSASettings, Pixels, Simulated, simulate
from anomalygpt.datasets.transforms import TRAINING_THRESHOLD, ImageTransform, load_image
from anomalygpt.datasets.wording import Wording

Source = Literal["same", "any"]


class SimulatedPairs(Dataset[SamplePair]):
    """Pairs of a normal training photo and the same photo with a simulated defect, one pair a photo.

    records: normal photos, none of them of the test split; any other raises DatasetError. transform: the defect
    is made on the pixels that it shows the model, so that photo and mask agree. seed: with the epoch and the index
    it decides a pair, whatever the number of workers. source: patches come from the `same` class or from `any`
    photo. drawn_share: how often a defect is drawn (`drawn.py`) in place of a pasted patch. wording: of the
    conversations. cache_bytes: memory for decoded photos, of all workers together.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        transform: ImageTransform,
        seed: int,
        source: Source = "same",
        drawn_share: float = 0.0,
        wording: Wording | None = None,
        cache_bytes: int = 1 << 30,
    ) -> None:
        _require_normal(records)
        if source not in ("same", "any"):
            raise ValueError(f"source {source!r}: expected 'same' or 'any'")
        self.records = list(records)
        self.transform = transform
        self.seed = seed
        self.source = source
        self.drawn_share = drawn_share
        self.wording = wording or Wording()
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._photos = PhotoCache(transform, (record.image for record in records), cache_bytes)
        self._of_class: defaultdict[str, list[int]] = defaultdict(list)
        for index, record in enumerate(self.records):
            self._of_class[record.class_name].append(index)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's defects; workers that are already running see it too."""
        self._shared_epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> SamplePair:
        """The pair of photo `index`. Raises DatasetError when a photo cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pairs")
        one_thread_in_workers()
        rng = np.random.default_rng([self.seed, int(self._shared_epoch[0]), index])
        record = self.records[index]
        pixels = self._photos.pixels(record.image)
        reference = self._photos.pixels(self.records[self._another(index, "same", rng)].image)
        patches = self._photos.pixels(self.records[self._another(index, self.source, rng)].image)
        simulated = self._simulated(pixels, patches, self.wording.card(record.class_name).nsa(), rng)
        unchanged = Simulated(pixels, np.zeros_like(simulated.mask), ())
        return SamplePair(
            normal=self._sample(record, unchanged, rng),
            defect=self._sample(record, simulated, rng),
            reference=self.transform.normalise(reference),
        )

    def _simulated(self, pixels: Pixels, patches: Pixels, settings: NSASettings, rng: np.random.Generator) -> Simulated:
        # Share 0 draws no number, so that the paper's data stay what they were.
        if self.drawn_share and rng.random() < self.drawn_share:
            drawn = draw_defects(pixels, settings, rng)
            if drawn.is_anomalous:
                return drawn
        return simulate(pixels, patches, settings, rng)

    def _another(self, index: int, source: Source, rng: np.random.Generator) -> int:
        """Another photo of the class, or of any class; the photo itself where there is no other."""
        choices = self._of_class[self.records[index].class_name] if source == "same" else range(len(self))
        if len(choices) == 1:
            return index
        drawn = choices[int(rng.integers(len(choices) - 1))]
        return choices[-1] if drawn == index else drawn

    def _sample(self, record: ImageRecord, photo: Simulated, rng: np.random.Generator) -> AnomalySample:
        target = photo.mask > TRAINING_THRESHOLD
        size = (target.shape[1], target.shape[0])
        positions = [position_name(box, size) for box in photo.boxes]
        turns = self.wording.turns(record.class_name, positions, float(target.mean()), self._kind(photo), rng)
        mask = torch.from_numpy(target.astype(np.float32))[None]  # (1, S, S)
        return AnomalySample(self.transform.normalise(photo.image), mask, record.class_name, turns, photo.is_anomalous)

    def _kind(self, photo: Simulated) -> str | None:
        """What a conversation may say of the defect's kind; nobody can say of what kind a pasted patch is."""
        if not self.drawn_share:
            return None
        return photo.kind or None if photo.is_anomalous else ""


def one_thread_in_workers() -> None:
    """OpenCV's own threads do not survive a loader worker's fork, and the workers share the cores already."""
    if get_worker_info() is not None:
        cv2.setNumThreads(0)


class PhotoCache:
    """Photos as a transform shows them to the model; each is decoded once, by whoever comes first.

    They lie in memory that worker processes share, so that the budget holds for all of them together, and so that a
    photo's pixels outlive the worker. Photos beyond the budget are decoded each time: an epoch shows every photo, so
    that one in the place of another would gain nothing.

    photos: the files that may be asked for. budget: bytes.
    """

    def __init__(self, transform: ImageTransform, photos: Iterable[Path], budget: int) -> None:
        self.transform = transform
        self.photos = list(dict.fromkeys(photos))
        self.budget = budget
        self._reserve(budget)

    def _reserve(self, budget: int) -> None:
        shape = (self.transform.size, self.transform.size, 3)
        kept = self.photos[: budget // math.prod(shape)]
        self._places = {path: place for place, path in enumerate(kept)}
        # Anonymous, so that neither a file nor the size of /dev/shm limits it; it is taken page by page, as it fills.
        memory = mmap.mmap(-1, max(1, len(kept) * (1 + math.prod(shape))))
        self._ready = np.frombuffer(memory, np.uint8, len(kept))
        self._pixels = np.frombuffer(memory, np.uint8, len(kept) * math.prod(shape), len(kept)).reshape(-1, *shape)
        self._lock = multiprocessing.Lock()
        self._unpickled = False

    @property
    def used(self) -> int:
        """Bytes of the photos that are kept so far."""
        return int(self._ready.sum()) * math.prod(self._pixels.shape[1:])

    def pixels(self, path: Path) -> Pixels:
        """The photo at `path` as read-only uint8 (S, S, 3). Raises DatasetError when it cannot be read."""
        if self._unpickled:
            info = get_worker_info()
            self._reserve(self.budget // (info.num_workers if info else 1))
        place = self._places.get(path)
        if place is None:
            return _read_only(self._decoded(path))
        with self._lock:  # what is marked as ready by another process is then seen whole
            ready = bool(self._ready[place])
        if not ready:
            self._pixels[place] = self._decoded(path)
            with self._lock:
                self._ready[place] = 1
        return _read_only(self._pixels[place])

    def _decoded(self, path: Path) -> Pixels:
        return np.array(self.transform.shown(load_image(path)))

    def __getstate__(self) -> dict[str, Any]:
        return {"transform": self.transform, "photos": self.photos, "budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a worker that was not forked (macOS, Windows) no memory is shared: each takes its part of the budget.
        self.__dict__.update(state, _unpickled=True)


def _read_only(pixels: Pixels) -> Pixels:
    view = pixels.view()
    view.setflags(write=False)
    return view


def _require_normal(records: Sequence[ImageRecord]) -> None:
    if not records:
        raise DatasetError("no records; expected normal training photos to simulate defects on")
    wrong = [record.image for record in records if record.is_anomalous or record.split == "test"]
    if wrong:
        raise DatasetError(f"{len(wrong)} records are not normal training photos: {first_offenders(wrong)}")


def holdout(records: Sequence[ImageRecord], fraction: float, seed: int) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Splits the normal training photos into (train, validation), class by class; other records are left out.

    fraction: of each class's photos that go to validation, 0 <= fraction < 1, rounded, at least one where
    there are two or more, and never all. The split depends on the seed and the files, not on the order of
    `records`.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction {fraction}: expected 0 <= fraction < 1")
    train: list[ImageRecord] = []
    validation: list[ImageRecord] = []
    normal = [record for record in records if record.split == "train" and not record.is_anomalous]
    for name in sorted({record.class_name for record in normal}):
        kept, held = hold_back([record for record in normal if record.class_name == name], fraction, name, seed)
        train, validation = train + kept, validation + held
    return train, validation


def normal_split(
    records: Sequence[ImageRecord], fraction: float, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """As `holdout`, but a class that has a validation split of its own (LOCO) keeps all of its training photos.

    Its validation photos come where the held-back ones would; with fraction 0 they are not used. Test photos never
    are.
    """
    own = in_order(r for r in records if r.split == "validation" and not r.is_anomalous)
    divided = {record.class_name for record in own}
    whole = [record for record in records if record.class_name in divided]
    train, validation = holdout([r for r in records if r.class_name not in divided], fraction, seed)
    train += holdout(whole, 0, seed)[0]
    return train, (validation + own if fraction > 0 else [])


def hold_back(
    records: Sequence[ImageRecord], fraction: float, name: str, seed: int
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """(kept, held back) of one group of records, each sorted by path; `name` and `seed` decide which.

    As many are held back as `holdout` says.
    """
    photos = sorted(records, key=lambda record: record.image)
    count = min(len(photos) - 1, max(1, round(fraction * len(photos)))) if fraction > 0 else 0
    order = np.random.default_rng([seed, crc32(name.encode())]).permutation(len(photos))
    held = {int(position) for position in order[:count]}
    kept = [photo for position, photo in enumerate(photos) if position not in held]
    return kept, [photo for position, photo in enumerate(photos) if position in held]
