"""Anomaly maps by comparison: with reference photos (AnomalyGPT section 3.2, eq. 2, and beyond), or of photos alone."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anomalygpt.config.settings import PhotoSettings, ReferenceSettings
from anomalygpt.datasets.photos import current_settings, to_rgb
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError, reading, reading_warning
from anomalygpt.inference import augmentation
from anomalygpt.inference.anomaly_map import BASE, concatenated, distance_map, encode_scales, image_scores, top_mean
from anomalygpt.inference.augmentation import UPRIGHT, VIEWS, Augmentation, Camera, View
from anomalygpt.inference.calibration import Calibration, calibrate
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.checkpoint import fingerprint, read_metadata, read_tensors, save_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.memory_bank import MemoryBank, unit_patches, weighted_mean
from anomalygpt.model.photo_geometry import PERTURBATIONS, part_box, perturbed
from anomalygpt.model.prompt_ensemble import LearnedTextFeatures
from anomalygpt.model.prompt_learner import MAP_SIZE

FORMAT, SUFFIX = "anomalygpt references 3", ".safetensors"
MOST_HELD_OUT = 16  # so many references are held out; more of them take time and hardly change the calibration
NEW_PHOTO = 1.35  # a new photo's map, in multiples of those of a single reference's own perturbed copies
# A bank above so many patches of one scale is replaced by a coreset of the other size. 16 references in four views have
# 65,536 at twice DINOv2's side; the limit takes 1.5 GiB there.
CORESET_ABOVE, CORESET_SIZE = 2**18, 2**13
THUMBNAIL = 56  # the side at which photos are compared by their pixels
# Photos that differ by less than the first on average, in levels of 255, and score less than the second against each
# other are nearly the same. Of ten parts, two photos score at least 0.10; JPEG, noise or another exposure gives 0-0.07.
ALIKE_PIXELS, ALIKE_SCORE = 6.0, 0.05
SAME, SAME_DISTANCE = 2.0, 0.05  # at most between the thumbnails and class tokens of one photo in two formats
LONG, MOST_TILES = 2, 8  # photos of this aspect ratio are compared in tiles, of which there are not more
STRAIGHTENED = 2 / 3  # of the map of a straightened part; the rest is the whole photo's
FLAT = 2.0  # standard deviation, below which nothing is shown
GROUP = 200  # photos that judge each other; the time grows with the square
FEWEST, DOZEN = 3, 12
NEAREST = 0.3  # fraction of the other photos, those with the most similar patch, that judge a patch
TYPICAL = 0.35  # quantile of the scores near which the good ones lie, whether few or two thirds are defective

IDENTITY = torch.eye(2, 3)  # in place of where a straightened part is
# Photos that are to be compared: features by scale of their tiles, at ``_whole`` of themselves; and where the
# straightened parts are, of each the matrix of ``PartBox.straightened``.
Encoded = tuple[dict[int, ImageFeatures], list[Tensor]]


class References:
    """Reference photos of good parts, at least one. What depends on all of them is computed when it is first needed.

    Raises :class:`UserError` where the settings do not fit each other or the encoder. ``transform`` is that of queries.
    """

    def __init__(
        self, model: AnomalyGPT, settings: ReferenceSettings, transform: ImageTransform, photos: Iterable[Image.Image]
    ) -> None:
        for what, count in (("scale", len(settings.scales)), ("tap", len(model.encoder.spec.taps))):
            weights = getattr(settings, f"{what}_weights")
            if weights and (len(weights) != count or not sum(weights)):
                expected = f"expected {count} numbers, one per {what}, not all zero"
                raise UserError(f"inference.references.{what}_weights {list(weights)}: {expected}")
        self.model, self.settings, self.transform = model, settings, transform
        self.photo_settings = current_settings()  # how photos are read
        photos = [*photos]
        self.straightens = False  # whether parts are turned along the x axis
        self.tiles = 1, 1  # rows and columns in which long photos, and straightened parts, are compared
        self._placed: list[Tensor] = []  # of each photo, where its straightened part is
        self._photos: list[dict[int, NDArray[np.uint8]]] = []  # of each, by scale, its T tiles (T, S, S, 3)
        self._thumbnails: list[NDArray[np.float32]] = []  # of each photo
        self.sources: list[str] = []  # of each photo, its file, or what number it is
        self._features: dict[tuple[int, int, View], ImageFeatures] = {}  # (photo, scale, view) -> of its T tiles
        self._held_out, self._text_weights = dict[str, Tensor](), dict[str, float]()  # by class name
        self.observed: dict[str, dict[float, bool | None]] = {}  # by class name, see ``calibration.Observed``
        if photos and transform.geometry == "squash":
            self._choose_tiles(photos)
        for photo in photos:
            self.add(photo)

    def _choose_tiles(self, photos: Sequence[Image.Image]) -> None:
        """Tiles of long photos, by the first one, or of long parts that lie at an angle, which are straightened."""
        self.tiles = _tiles_of(to_rgb(photos[0]))
        if self.settings.augmentation != "auto" or self.tiles != (1, 1):
            return
        if aspect := augmentation.tilted_aspect([part_box(to_rgb(one)) for one in photos[: augmentation.DECIDED_BY]]):
            self.straightens, self.tiles = True, (1, min(MOST_TILES, round(aspect)))

    def add(self, photo: Image.Image) -> None:
        """Adds a photo, before anything is compared with the others."""
        number, source = len(self), photo.info.get("source") or f"reference {len(self) + 1}"
        crops, placed = self._cut(photo)
        pictures = {scale: (crops, self.transform.enlarged(scale)) for scale in self.scales}
        pictures[self._whole] = [photo], self.transform
        shown = {scale: [np.asarray(of.shown(each)) for each in crops] for scale, (crops, of) in pictures.items()}
        self._photos.append({scale: np.stack(tiles) for scale, tiles in shown.items()})
        self._thumbnails.append(_thumbnail(shown[self._whole][0]))
        self._placed.append(placed)
        if (other := self._duplicate_of(number)) is not None:
            reading_warning(f"{source}: nearly the same photo as {self.sources[other]} (a copy, a burst); left out")
            self._photos.pop(), self._thumbnails.pop(), self._placed.pop()
            self._features.pop((number, self._whole, UPRIGHT), None)
            return
        self.sources.append(source)
        if self._thumbnails[number].std(axis=(0, 1)).max() < FLAT:
            reading_warning(f"{source}: a flat photo without any detail; expected a reference that shows a good part")
        if any(self.observed.values()):
            reading_warning(f"{source}: scores change with the references: photos called good or bad don't count")
        self.observed = {}

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales of the tiles; a straightened part is large enough at the encoder's own side."""
        return (BASE,) if self.straightens else self.settings.scales

    @property
    def _whole(self) -> int:
        """The scale of whole photos at the encoder's own side: 0 beside the tiles of long ones."""
        return BASE if self.tiles == (1, 1) else 0

    @torch.inference_mode()
    def _duplicate_of(self, number: int) -> int | None:
        """The first photo that another one repeats; two such photos would make the threshold far too low."""
        for other in range(number):
            if np.abs(self._thumbnails[number] - self._thumbnails[other]).mean() < ALIKE_PIXELS:
                mine, others = (self._views(photo, self._whole) for photo in (number, other))
                similarity = MemoryBank(others).similarity(mine, self.settings.tap_weights)
                map = distance_map([similarity], self.settings, MAP_SIZE, self.model.encoder.spec.grid)
                if float(top_mean(map, self.settings.top_share)) < ALIKE_SCORE:
                    return other
        return None

    def without(self, left_out: Collection[int]) -> "References":
        """The references but those of some numbers; what has been encoded of them is shared."""
        kept = [number for number in range(len(self)) if number not in left_out]
        other = References(self.model, self.settings, self.transform, ())
        other.tiles, other.straightens = self.tiles, self.straightens
        other.sources, other._placed = [self.sources[n] for n in kept], [self._placed[n] for n in kept]
        other._photos = [self._photos[number] for number in kept]
        other._thumbnails = [self._thumbnails[number] for number in kept]
        other._features = {(kept.index(n), s, v): of for (n, s, v), of in self._features.items() if n in kept}
        return other

    def observed_as(self, class_name: str) -> dict[float, bool | None]:
        """The observed scores that count for a class."""
        return self.observed.setdefault(self.calibration_class(class_name), {})

    def __len__(self) -> int:
        """K, the number of photos."""
        return len(self._photos)

    @torch.inference_mode()
    def encode(self, photos: Sequence[Image.Image]) -> Encoded:
        """Encodes B photos to be compared."""
        cut = [self._cut(photo) for photo in photos]
        crops = [crop for of_one, _ in cut for crop in of_one]
        encoded = encode_scales(self.model, crops, self.transform, self.scales)
        if self._whole != BASE:
            encoded[self._whole] = encode_scales(self.model, photos, self.transform, ())[BASE]
        for photo, embedding in zip(photos, encoded[self._whole].embedding, strict=True):
            distances = cosine_distances(embedding, self.embeddings[: len(self)])
            if near := (distances < SAME_DISTANCE).nonzero()[:, 0].tolist():  # resizing a large photo again takes long
                own, source = _thumbnail(np.asarray(self.transform.shown(photo))), photo.info.get("source")
                same = [self.sources[n] for n in near if np.abs(own - self._thumbnails[n]).max() < SAME]
                for other in same[:1]:
                    reading_warning(f"{source or 'the photo'}: also a reference ({other}), so its score says nothing")
        return encoded, [placed for _, placed in cut]

    @torch.inference_mode()
    def anomaly_maps(self, encoded: Encoded, class_name: str) -> tuple[ImageFeatures, Tensor]:
        """What :meth:`encode` gives -> whole photos' features, and their maps, (B, 1, 224, 224) float32."""
        return encoded[0][self._whole], self._maps(self.banks, encoded, class_name)

    def _cut(self, photo: Image.Image) -> tuple[list[Image.Image], Tensor]:
        """The tiles of a photo in reading order, of most photos itself, and where its straightened part is, if any."""
        if self.tiles == (1, 1):
            return [photo], IDENTITY
        photo, placed = to_rgb(photo), IDENTITY
        if self.straightens:
            photo, placed = part_box(photo).straightened(photo)
        (rows, columns), (width, height) = self.tiles, photo.size
        ys, xs = ([round(i * side / n) for i in range(n + 1)] for side, n in ((height, rows), (width, columns)))
        tiles = [photo.crop((xs[c], ys[r], xs[c + 1], ys[r + 1])) for r in range(rows) for c in range(columns)]
        return tiles, placed

    def _maps(self, banks: Mapping[int, MemoryBank], encoded: Encoded, class_name: str) -> Tensor:
        """Maps (B, 1, 224, 224) of B photos."""
        features, placed = encoded

        def map_of(*scales: int) -> Tensor:
            similarities = [banks[scale].similarity(features[scale], self.settings.tap_weights) for scale in scales]
            return distance_map(similarities, self.settings, MAP_SIZE, self.model.encoder.spec.grid)

        maps = map_of(*self.scales)
        if self.tiles != (1, 1):
            rows, columns = self.tiles
            long = rearrange(maps, "(b r c) k h w -> b k (r h) (c w)", r=rows, c=columns)
            maps = F.interpolate(long, size=maps.shape[-2:], mode="area")
        if self.straightens:
            grid = F.affine_grid(torch.stack(placed), [*maps.shape], align_corners=False).to(maps.device)
            inside = STRAIGHTENED * F.grid_sample(torch.ones_like(maps), grid, align_corners=False)
            maps = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
            maps = torch.lerp(map_of(self._whole), maps, inside)
        if weight := self.text_weight(class_name):
            text, blend = features[self._whole], torch.tensor(weight)
            maps = (1 - blend) * maps + blend * self.model.anomaly_map(text, [class_name] * len(maps))
        return maps

    @cached_property
    @torch.inference_mode()
    def embeddings(self) -> Tensor:
        """Unit class tokens at the encoder's own side: of the K photos, then of their further views, (N, D)."""
        upright = [self._views(photo, self._whole).embedding for photo in range(len(self))]
        whole = [key for key in self._features if key[1] == self._whole]
        return torch.cat([*upright, *(self._features[key].embedding for key in whole if key[2] != UPRIGHT)])

    @torch.inference_mode()
    def text_weight(self, class_name: str = UNNAMED_CLASS) -> float:
        """The weight of a class's text map: zero where it scores these references as anomalous."""
        weight, trusted_below = self.settings.text_weight, self.settings.text_trusted_below
        if weight == 0 or trusted_below == 1:
            return weight
        key = self.calibration_class(class_name)
        if key not in self._text_weights:
            upright = concatenated([self._views(photo, self._whole) for photo in self._to_hold_out()])
            maps = self.model.anomaly_map(upright, [class_name] * len(upright))
            trusted = float(top_mean(maps, self.settings.top_share).mean()) <= trusted_below
            self._text_weights[key] = weight if trusted else 0.0
        return self._text_weights[key]

    @torch.inference_mode()
    def held_out_maps(self, class_name: str = UNNAMED_CLASS) -> Tensor:
        """Maps of good photos that the memory bank did not hold, (M, 1, 224, 224) float32, M >= 1.

        Several references are each compared with the others; a single one with its perturbed copies (``NEW_PHOTO``).
        """
        key = self.calibration_class(class_name)
        if key in self._held_out:
            return self._held_out[key]
        maps: list[Tensor] = []
        for photo in self._to_hold_out() if len(self) > 1 else ():
            banks = {scale: bank[bank.photos != photo] for scale, bank in self.banks.items()}
            features = {scale: self._views(photo, scale) for scale in self._photos[photo]}
            maps.append(self._maps(banks, (features, [self._placed[photo]]), key))
        if not maps:
            tiles = {scale: [perturbed(tile) for tile in self._pixels(0, scale)] for scale in self._photos[0]}
            features = {scale: self.model.encode(torch.stack(of, dim=1).flatten(0, 1)) for scale, of in tiles.items()}
            maps = [NEW_PHOTO * self._maps(self.banks, (features, self._placed * len(PERTURBATIONS)), key)]
        return self._held_out.setdefault(key, torch.cat(maps))

    def calibration_class(self, class_name: str) -> str:
        """The class by which calibrations differ: one for all where maps do not depend on the class."""
        depends = self.settings.text_weight > 0 and not isinstance(self.model.states, LearnedTextFeatures)
        return class_name if depends else UNNAMED_CLASS

    def _to_hold_out(self) -> list[int]:
        return np.linspace(0, len(self) - 1, min(len(self), MOST_HELD_OUT)).round().astype(int).tolist()

    @cached_property
    @torch.inference_mode()
    def augmentation(self) -> Augmentation:
        """Which further views are in the memory bank; ``auto`` is decided by the photos so far."""
        if self.settings.augmentation != "auto":
            return self.settings.augmentation
        if self.straightens:
            return "none"
        if len(self) == 1:  # shows so little of the part that its rotations help in any case
            return "rotations"
        chosen = range(min(len(self), augmentation.DECIDED_BY))
        gain = augmentation.rotation_gain([self._views(photo, self._whole, VIEWS["rotations"]) for photo in chosen])
        return "rotations" if gain < augmentation.CLEAR_GAIN else "none"

    @cached_property
    @torch.inference_mode()
    def banks(self) -> dict[int, MemoryBank]:
        """The patches that photos are compared with, by scale."""
        chosen, banks = dict.fromkeys(self.scales, self.augmentation), {}
        if self.straightens:
            chosen[self._whole] = "rotations"
        cameras: list[Camera] = ["noisy", "compressed"] if self.settings.camera_copies else []
        for scale, augmented in chosen.items():
            views = VIEWS[augmented]
            copies = [(turns, camera) for camera in cameras for turns, _ in views]
            copied = math.ceil(augmentation.CAMERA_COPIES / len(views) / len(self._photos[0][scale]))
            seen_as = [[*views, *copies] if photo < copied else [*views] for photo in range(len(self))]
            bank = MemoryBank([self._views(photo, scale, of) for photo, of in enumerate(seen_as)])
            banks[scale] = bank.coreset(CORESET_SIZE) if len(bank) > CORESET_ABOVE else bank
        return banks

    def _pixels(self, photo: int, scale: int, camera: Camera = "own") -> Tensor:
        """(T, 3, S, S), normalised."""
        tiles = [augmentation.by_camera(tile, camera) for tile in self._photos[photo][scale]]
        return torch.stack([self.transform.normalise(tile) for tile in tiles])

    def _views(self, photo: int, scale: int, views: Sequence[View] = (UPRIGHT,)) -> ImageFeatures:
        """Features of V views of the T tiles of a reference, (V * T, …); those that are not there yet are encoded."""
        missing = [view for view in views if (photo, scale, view) not in self._features]
        if missing:
            tiles = [torch.rot90(self._pixels(photo, scale, camera), turns, dims=(-2, -1)) for turns, camera in missing]
            encoded, count = self.model.encode(torch.cat(tiles)), len(tiles[0])
            for number, view in enumerate(missing):
                self._features[photo, scale, view] = encoded[number * count : (number + 1) * count]
        return concatenated([self._features[photo, scale, view] for view in views])

    def save(self, path: Path) -> None:
        """Writes photos, settings and observed scores to a safetensors file, atomically; raises :class:`UserError`."""
        if path.suffix != SUFFIX:
            raise UserError(f"{path}: expected a file name that ends in {SUFFIX}")
        pixels = {scale: np.stack([photo[scale] for photo in self._photos]) for scale in self._photos[0]}
        about = {"identity": _identity(self.model, self.transform), "tiles": self.tiles, "observed": self.observed}
        about["placed"] = [placed.tolist() for placed in self._placed] if self.straightens else []
        about |= {"settings": self.settings.model_dump(), "photos": self.photo_settings.model_dump()}
        written = {"format": FORMAT} | {name: json.dumps(value) for name, value in about.items()}
        save_tensors({f"photos.{scale}": torch.from_numpy(value) for scale, value in pixels.items()}, path, written)

    @classmethod
    def load(cls, path: Path, model: AnomalyGPT, transform: ImageTransform) -> "References":
        """Reads what :meth:`save` wrote, with the settings of the file. The photos are encoded again.

        Raises :class:`UserError`: no such file, damaged, or it does not fit the encoder, its weights or the geometry.
        """
        about = read_metadata(path)
        if about.get("format") != FORMAT:
            what = "no file of references" if path.is_file() else "no such file"
            raise UserError(f"{path}: {what}; expected one that --save-references wrote")
        with reading(path, "references; save them again"):
            saved = {name: json.loads(about[name]) for name in ("identity", "settings", "tiles", "observed")}
            references = cls(model, ReferenceSettings.model_validate(saved["settings"]), transform, ())
            references.photo_settings = PhotoSettings.model_validate_json(about["photos"])
            pixels = {int(name.removeprefix("photos.")): value.numpy() for name, value in read_tensors(path).items()}
        theirs, ours = saved["identity"], _identity(model, transform)
        if differ := [name for name in ours if theirs.get(name) != ours[name]]:
            what = "; ".join(f"{name} is {theirs.get(name)} in the file and {ours[name]} here" for name in differ)
            raise UserError(f"{path}: made for something else: {what}. Save the references again with this model")
        references.tiles, placed = tuple(saved["tiles"]), json.loads(about.get("placed", "[]"))
        references.straightens = bool(placed)
        references._photos = [dict(zip(pixels, photo, strict=True)) for photo in zip(*pixels.values(), strict=True)]
        references._thumbnails = [_thumbnail(photo[references._whole][0]) for photo in references._photos]
        references._placed = [torch.tensor(each) for each in placed] or [IDENTITY] * len(references)
        for key, scores in saved["observed"].items():
            references.observed[key] = {float(score): good for score, good in scores.items()}
        references.sources = [f"{path.name}, number {number + 1}" for number in range(len(references))]
        return references


class UnlabelledPhotos:
    """Three or more photos of one part that judge each other, without a good one (MuSc, Li et al., 2024).

    What most photos have in common is good, what few have is a defect: most must be good, or their defects differ.
    """

    @torch.inference_mode()
    def __init__(
        self, model: AnomalyGPT, settings: ReferenceSettings, transform: ImageTransform, photos: Iterable[Image.Image]
    ) -> None:
        self.settings, self._grid = settings, model.encoder.spec.grid
        self._numbers: dict[bytes, int] = {}
        encoded: list[dict[int, ImageFeatures]] = []
        for photo in photos:
            if (key := _key(photo)) in self._numbers:
                continue  # the same photo under another name, which would find every defect in its copy
            self._numbers[key] = len(encoded)
            encoded.append(encode_scales(model, [photo], transform, settings.scales))
        if FEWEST <= len(encoded) < DOZEN:
            reading_warning(f"{len(encoded)} photos to judge each other: expected dozens, most of them good")
        if len(encoded) < FEWEST:
            raise UserError(f"{len(encoded)} photos to judge each other: expected {FEWEST} or more, better dozens")
        self._features = concatenated([scales[BASE] for scales in encoded])
        groups = torch.arange(len(encoded)).chunk(max(1, round(len(encoded) / GROUP)))
        self._similarities = [  # by scale, (N, P, P)
            torch.cat([mutual_similarity([encoded[i][scale] for i in group], settings.tap_weights) for group in groups])
            for scale in settings.scales
        ]

    def _maps(self, numbers: Sequence[int]) -> Tensor:
        return distance_map([each[numbers] for each in self._similarities], self.settings, MAP_SIZE, self._grid)

    def anomaly_maps(self, photos: Sequence[Image.Image]) -> tuple[ImageFeatures, Tensor]:
        """See ``References``; raises :class:`UserError` where a photo is not among those that judge each other."""
        numbers = [self._numbers.get(_key(photo), -1) for photo in photos]
        if -1 in numbers:
            raise UserError("a photo that is not among those that judge each other: give all of them at once")
        return self._features[numbers], self._maps(numbers)

    def calibration(self, false_alarm_rate: float) -> Calibration:
        """Takes the scores' lower mode for the good photos', see ``calibrate``, and a typical one for a reference's."""
        maps = [self._maps([number]) for number in range(len(self._features))]
        scores = [float(image_scores(map, self.settings)) for map in maps]
        typical = sorted(range(len(maps)), key=scores.__getitem__)[round(TYPICAL * (len(maps) - 1))]
        observed = dict.fromkeys(scores)
        return calibrate([scores[typical]], maps[typical], false_alarm_rate, references=1, observed=observed)


def mutual_similarity(photos: Sequence[ImageFeatures], tap_weights: Sequence[float] = ()) -> Tensor:
    """Features of N single photos -> (N, P, P): each patch's similarity to the most similar other photos, float32."""
    units, grid = [unit_patches(photo) for photo in photos], photos[0].grid
    nearest = torch.full((len(photos), len(photos), grid * grid), -1.0, device=units[0][0].device)
    for one, mine in enumerate(units):
        for two, others in enumerate(units[:one]):
            layers = [tap[0] @ other[0].T for tap, other in zip(mine, others, strict=True)]
            nearest[one, two] = weighted_mean(torch.stack([layer.amax(dim=1) for layer in layers]), tap_weights)
            nearest[two, one] = weighted_mean(torch.stack([layer.amax(dim=0) for layer in layers]), tap_weights)
    judges = max(1, round(NEAREST * (len(photos) - 1)))
    return nearest.topk(judges, dim=1).values.mean(dim=1).unflatten(1, (grid, grid))


def saved_photo_settings(path: Path) -> PhotoSettings | None:
    """How the photos of a file of references were read; None where it does not say so."""
    about = read_metadata(path)
    return PhotoSettings.model_validate_json(about["photos"]) if about.get("format") == FORMAT else None


def cosine_distances(embedding: Tensor, known: Tensor) -> Tensor:
    """From a unit vector (D,) to each of some others (N, D), (N,) 0..2."""
    return 1 - known.float() @ embedding.float()


def _identity(model: AnomalyGPT, transform: ImageTransform) -> dict[str, Any]:
    """What the pixels and features of references depend on, beside the settings."""
    encoder: Any = getattr(model.encoder, "torch", model.encoder)  # the same references, whatever runs it
    identity = {"encoder": type(encoder).__name__, "weights": fingerprint(encoder), "image_size": encoder.spec.size}
    return identity | {"taps": list(encoder.spec.taps), "geometry": transform.geometry}


def _tiles_of(photo: Image.Image) -> tuple[int, int]:
    """Rows and columns of nearly square tiles of a long RGB photo; 1, 1 of any other."""
    width, height = photo.size
    if max(width, height) < LONG * min(width, height):
        return 1, 1
    return min(MOST_TILES, max(1, round(height / width))), min(MOST_TILES, max(1, round(width / height)))


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels (S, S, 3) -> (56, 56, 3), less the means of their colours."""
    small = cv2.resize(pixels.astype(np.float32), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return np.asarray(small - small.mean(axis=(0, 1)), dtype=np.float32)


def _key(photo: Image.Image) -> bytes:
    return sha256(f"{photo.mode} {photo.size}".encode() + photo.tobytes()).digest()
