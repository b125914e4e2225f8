"""Good photos of one part, remembered: what a photo is compared with (AnomalyGPT section 3.2, eq. 2, and beyond)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.augmentation import DECIDED_BY, choose_augmentation, view_gains
from anomalygpt.inference.comparison import ScaleMemory, distance_map, euclid, top_mean
from anomalygpt.inference.reference_file import (
    StoredReferences,
    check_fits,
    encoder_identity,
    read_references,
    write_references,
)
from anomalygpt.inference.reference_settings import ReferenceSettings
from anomalygpt.inference.reference_views import ALL_VIEWS, UPRIGHT, VIEWS, Augmentation, View, places
from anomalygpt.inference.text_map import OWN
from anomalygpt.model.anomalygpt import UNNAMED_CLASS, AnomalyGPT
from anomalygpt.model.encoder import ImageFeatures, ImageSpec
from anomalygpt.model.foreground import find_background, lie_of
from anomalygpt.model.patch_bank import PatchBank, unit_patches
from anomalygpt.model.prompt_ensemble import LearnedStates
from anomalygpt.model.prompt_learner import MAP_SIZE
from anomalygpt.model.retakes import retaken
from anomalygpt.model.tiles import encode_square

MOST_HELD_OUT = 16  # so many references are held against the others; more tell nothing new, and take time
ELSEWHERE = 2  # patches around a patch's own place that are no comparison, where a photo is held against itself

__all__ = ["References"]


class References:
    """Good photos of one part, and maps of what differs from them.

    Args:
        model: its encoder looks at the photos.
        settings: how they are compared.
        transform: brings a photo to the encoder's own side, in the geometry that queries have too.

    Raises:
        UserError: the settings do not fit each other or the encoder.
    """

    def __init__(self, model: AnomalyGPT, settings: ReferenceSettings, transform: ImageTransform) -> None:
        _check(settings, model.encoder.spec)
        self.model = model
        self.settings = settings
        self.transform = transform
        self._shown: list[dict[int, Image.Image]] = []  # of each photo, at each scale
        self._features: dict[tuple[int, int, View], ImageFeatures] = {}  # (photo, scale, view) -> one image's
        # What follows from all photos together; None until it is asked for.
        self._memory: Mapping[int, ScaleMemory] | None = None
        self._held_out: dict[str, Tensor] = {}  # by class name
        self._text_weights: dict[str, float] = {}  # by class name
        self._decided: Augmentation | None = None

    @classmethod
    def remember(
        cls,
        model: AnomalyGPT,
        photos: Sequence[Image.Image],
        settings: ReferenceSettings,
        transform: ImageTransform,
    ) -> "References":
        """Remembers K >= 1 good photos; arguments are those of the class.

        Raises:
            UserError: there is no photo, or the settings do not fit.
        """
        if not photos:
            raise UserError("references: expected at least one photo of a good part")
        references = cls(model, settings, transform)
        for photo in photos:
            references.add(photo)
        return references

    def add(self, photo: Image.Image) -> None:
        """Remembers a further photo: the same as having remembered it with the others, which are not encoded again.

        Only where the photos were loaded from a file with a thinned memory are they all encoded once more, and where
        ``auto`` now decides for views that were not needed before, those views.
        """
        self._shown.append({scale: self.transform.enlarged(scale).shown(photo) for scale in self._scales})
        self._forget_what_follows()

    def __len__(self) -> int:
        """K, the photos."""
        return len(self._shown)

    # -- a photo against them ---------------------------------------------------------------------------------------

    def look(self, photo: Image.Image, class_name: str = UNNAMED_CLASS) -> tuple[ImageFeatures, Tensor]:
        """A photo's features, one image at the encoder's own side, and its map, (1, 1, 224, 224) float32."""
        return self.look_many([photo], [class_name])

    @torch.inference_mode()
    def look_many(self, photos: Sequence[Image.Image], class_names: Sequence[str]) -> tuple[ImageFeatures, Tensor]:
        """B photos at once: their features at the encoder's own side, and their maps, (B, 1, 224, 224) float32.

        Args:
            class_names: B names, for the text map where it has a weight.
        """
        seen = {
            scale: self._encode(torch.stack([self.transform.enlarged(scale)(photo) for photo in photos]), scale)
            for scale in self._scales
        }
        return seen[OWN], self._maps(self.memory, seen, class_names)

    def score(self, map: Tensor) -> float:
        """The image score of a map (1, 1, S, S)."""
        return float(top_mean(map, self.settings.top_share))

    def _maps(
        self, memory: Mapping[int, ScaleMemory], seen: Mapping[int, ImageFeatures], class_names: Sequence[str]
    ) -> Tensor:
        near = [memory[scale].closeness(seen[scale], self.settings) for scale in self.settings.scales]
        maps = distance_map(near, self.settings, MAP_SIZE, self.model.encoder.spec.grid)
        weights = [self.text_weight(name) for name in class_names]
        if not any(weights):
            return maps
        shares = torch.tensor(weights, device=maps.device)[:, None, None, None]
        return (1 - shares) * maps + shares * self.model.anomaly_map(seen[OWN], class_names)

    @torch.inference_mode()
    def text_weight(self, class_name: str = UNNAMED_CLASS) -> float:
        """What the text map of a class weighs beside these references: nothing where it finds fault with them."""
        weight, trusted_below = self.settings.text_weight, self.settings.text_trusted_below
        if weight == 0 or trusted_below == 1:
            return weight
        key = self.calibration_class(class_name)
        if key not in self._text_weights:
            chosen = _evenly(len(self), MOST_HELD_OUT)
            seen = _joined([self._views(photo, OWN, [UPRIGHT]) for photo in chosen])
            maps = self.model.anomaly_map(seen, [class_name] * len(chosen))
            trusted = float(top_mean(maps, self.settings.top_share).mean()) <= trusted_below
            self._text_weights[key] = weight if trusted else 0.0
        return self._text_weights[key]

    # -- good photos against each other -----------------------------------------------------------------------------

    @torch.inference_mode()
    def held_out_maps(self, class_name: str = UNNAMED_CLASS) -> Tensor:
        """Maps of good photos that the memory did not hold, (M, 1, 224, 224) float32, M >= 1.

        With several references each is held against the others; a single one against itself taken again.

        Args:
            class_name: for the text map where it has a weight.
        """
        key = self.calibration_class(class_name)
        if key not in self._held_out:
            # A thinned memory may be one photo's alone, as where the others are copies of it.
            photos = [photo for photo in _evenly(len(self), MOST_HELD_OUT) if self._is_known_without(photo)]
            self._held_out[key] = self._left_out_maps(photos, key) if photos else self._retaken_maps(key)
        return self._held_out[key]

    def calibration_class(self, class_name: str) -> str:
        """The name under which a class's good photos are kept: one for all where maps do not depend on the class."""
        depends = self.settings.text_weight > 0 and not isinstance(self.model.states, LearnedStates)
        return class_name if depends else UNNAMED_CLASS

    def _is_known_without(self, photo: int) -> bool:
        return all(len(known.bank.without(photo)) > 0 for known in self.memory.values())

    def _left_out_maps(self, photos: Sequence[int], class_name: str) -> Tensor:
        maps = []
        for photo in photos:
            memory = {scale: replace(known, bank=known.bank.without(photo)) for scale, known in self.memory.items()}
            seen = {scale: self._views(photo, scale, [UPRIGHT]) for scale in self._scales_seen}
            maps.append(self._maps(memory, seen, [class_name]))
        return torch.cat(maps)

    def _retaken_maps(self, class_name: str) -> Tensor:
        """The first photo taken again: against all of the memory, then against it without each patch's own place.

        The first kind knows too well what it sees, the second misses what the part has only once.
        """
        seen = {scale: self._encode(retaken(self._pixels(0, scale)), scale) for scale in self._scales_seen}
        names = [class_name] * len(next(iter(seen.values())))
        elsewhere = {scale: replace(known, reach=scale * ELSEWHERE) for scale, known in self.memory.items()}
        return torch.cat([self._maps(memory, seen, names) for memory in (self.memory, elsewhere)])

    # -- what is remembered -----------------------------------------------------------------------------------------

    @property
    def augmentation(self) -> Augmentation:
        """Which further views are remembered; ``auto`` is decided by the photos so far."""
        if self.settings.augmentation != "auto":
            return self.settings.augmentation
        if self._decided is None:
            self._decided = self._decide()
        return self._decided

    @torch.inference_mode()
    def _decide(self) -> Augmentation:
        if len(self) == 1:  # nothing that could be encoded and compared for it would tell
            return choose_augmentation({}, ())
        photos = [self._views(photo, OWN, ALL_VIEWS) for photo in range(min(len(self), DECIDED_BY))]
        lies = [lie_of(unit_patches(photo[:1])[-1][0]) for photo in photos]
        return choose_augmentation(view_gains(photos), lies)

    @property
    def memory(self) -> Mapping[int, ScaleMemory]:
        """The patches that photos are compared with, scale by scale."""
        if self._memory is None:
            with torch.inference_mode():
                self._memory = {scale: self._scale_memory(scale) for scale in self.settings.scales}
        return self._memory

    def _scale_memory(self, scale: int) -> ScaleMemory:
        views = VIEWS[self.augmentation]
        photos = [self._views(photo, scale, views) for photo in range(len(self))]
        bank = PatchBank.of(photos, places(views, photos[0].grid), self.settings.neighbourhood)
        upright = [unit_patches(photo[:1], self.settings.neighbourhood) for photo in photos]
        background = find_background([taps[-1][0] for taps in upright]) if self.settings.foreground == "auto" else None
        usual = self._usual(bank, upright, scale) if self.settings.normalise else None
        thin = self.settings.coreset_share < 1 and len(bank) > self.settings.coreset_from
        keep = max(1, round(self.settings.coreset_share * len(bank))) if thin else len(bank)
        return ScaleMemory(bank.thinned(keep), background, usual)

    def _usual(self, bank: PatchBank, upright: Sequence[Sequence[Tensor]], scale: int) -> Tensor:
        """The mean distance of good patches from the memory, (L,)."""
        if len(upright) == 1:
            cosines = bank.similarities_elsewhere(upright[0], scale * ELSEWHERE)
        else:
            chosen = _evenly(len(upright), MOST_HELD_OUT)
            cosines = torch.cat([bank.without(photo).similarities(upright[photo]) for photo in chosen], dim=1)
        distances = 1 - cosines if self.settings.distance == "cosine" else euclid(cosines)
        return distances.flatten(1).mean(dim=1).clamp(min=torch.finfo(torch.float32).eps)

    def _forget_what_follows(self) -> None:
        """After a change of the photos."""
        self._memory, self._held_out, self._text_weights, self._decided = None, {}, {}, None

    # -- pixels and features ----------------------------------------------------------------------------------------

    @property
    def _scales(self) -> list[int]:
        """At which a photo is shown: at the encoder's own side for the language model and the text map, too."""
        return sorted({OWN, *self.settings.scales})

    @property
    def _scales_seen(self) -> list[int]:
        """At which a reference is encoded to be compared."""
        return sorted({*self.settings.scales, *([OWN] if self.settings.text_weight else [])})

    def _pixels(self, photo: int, scale: int) -> Tensor:
        return self.transform.enlarged(scale).normalise(np.asarray(self._shown[photo][scale]))

    def _encode(self, images: Tensor, scale: int) -> ImageFeatures:
        tiling = self.settings.tiling and scale != OWN
        return encode_square(self.model.encode, self.model.encoder.spec, images, tiling)

    def _views(self, photo: int, scale: int, views: Sequence[View]) -> ImageFeatures:
        """Features of V views of a remembered photo, encoded where they were not yet."""
        missing = [view for view in views if (photo, scale, view) not in self._features]
        if missing:
            pixels = self._pixels(photo, scale)
            encoded = self._encode(torch.stack([view.of(pixels) for view in missing]), scale)
            for number, view in enumerate(missing):
                self._features[photo, scale, view] = encoded[[number]]
        return _joined([self._features[photo, scale, view] for view in views])

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all. Features are kept in half precision.

        Raises:
            UserError: there is no photo yet, or the file can't be written.
        """
        if not self._shown:
            raise UserError(f"{path}: there are no references to save")
        write_references(
            path,
            StoredReferences(
                identity=encoder_identity(self.model, self.transform),
                settings=self.settings,
                augmentation=self.augmentation,
                shown=self._shown,
                features={} if self._is_thinned else self._views_compared(),
                memory=dict(self.memory) if self._is_thinned else {},
                held_out=None if self.settings.text_weight else self.held_out_maps(),
            ),
        )

    @classmethod
    def load(
        cls,
        path: Path,
        model: AnomalyGPT,
        transform: ImageTransform,
        settings: ReferenceSettings | None = None,
    ) -> "References":
        """Reads what :meth:`save` wrote; ``settings`` None takes those of the file.

        Raises:
            UserError: no such file, damaged, or it does not fit the encoder, its weights, the geometry or the
                settings.
        """
        stored = read_references(path, model.device)
        check_fits(path, stored, encoder_identity(model, transform), settings)
        references = cls(model, stored.settings, transform)
        references._shown = stored.shown
        references._decided = stored.augmentation
        references._memory = stored.memory or None
        references._held_out = {} if stored.held_out is None else {UNNAMED_CLASS: stored.held_out}
        for scale, photos in stored.features.items():
            for photo, features in enumerate(photos):
                for number, view in enumerate(VIEWS[stored.augmentation]):
                    references._features[photo, scale, view] = features[[number]]
        return references

    @property
    def _is_thinned(self) -> bool:
        full = len(self) * len(VIEWS[self.augmentation]) * self.model.encoder.spec.grid**2
        return any(len(known.bank) < full * scale**2 for scale, known in self.memory.items())

    def _views_compared(self) -> dict[int, list[ImageFeatures]]:
        views = VIEWS[self.augmentation]
        return {
            scale: [self._views(photo, scale, views) for photo in range(len(self))] for scale in self.settings.scales
        }


def _check(settings: ReferenceSettings, spec: ImageSpec) -> None:
    for name, weights, count, what in (
        ("scale_weights", settings.scale_weights, len(settings.scales), "scale"),
        ("tap_weights", settings.tap_weights, len(spec.taps), "tap"),
    ):
        if weights and (len(weights) != count or sum(weights) <= 0):
            raise UserError(
                f"inference.references.{name} {list(weights)}: expected {count} numbers, one a {what}, not all zero"
            )


def _evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers below ``count``, evenly spread."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _joined(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    taps = tuple(torch.cat(layer) for layer in zip(*(part.taps for part in parts), strict=True))
    return ImageFeatures(taps, torch.cat([part.embedding for part in parts]))
