"""Remembered references as a file: one safetensors file, tied to the encoder, its weights and the geometry."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.inference.comparison import ScaleMemory
from anomalygpt.inference.reference_settings import ReferenceSettings
from anomalygpt.inference.reference_views import VIEWS, Augmentation
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import CheckpointError, read_metadata, read_tensors, save_tensors
from anomalygpt.model.encoder import ImageFeatures
from anomalygpt.model.foreground import Background
from anomalygpt.model.patch_bank import PatchBank

FORMAT = "anomalygpt references 1"
SUFFIX = ".safetensors"
KEPT = torch.float16  # cosines of patches rounded so differ by about 1e-5
HASHED_TENSORS, HASHED_VALUES = 8, 65536  # so many of the weights, and of each so many, tell encoders apart


@dataclass(frozen=True)
class EncoderIdentity:
    """What patches depend on, beside the settings. Patches of two photos compare only where all of it is the same."""

    encoder: str
    weights: str
    image_size: int
    taps: tuple[int, ...]
    geometry: str


@dataclass(frozen=True)
class StoredReferences:
    """What a file holds: the photos, and either their features or, of a memory that was thinned, what is left.

    Attributes:
        augmentation: what ``auto`` came to.
        shown: of each photo, at each scale, the pixels that the encoder saw.
        features: scale -> the features of each photo's V views, kept in half precision.
        memory: scale -> what photos are compared with, kept in half precision; only without features.
        held_out: maps of good photos (M, 1, S, S); None where they depend on the class.
    """

    identity: EncoderIdentity
    settings: ReferenceSettings
    augmentation: Augmentation
    shown: list[dict[int, Image.Image]]
    features: dict[int, list[ImageFeatures]]
    memory: dict[int, ScaleMemory]
    held_out: Tensor | None


def encoder_identity(model: AnomalyGPT, transform: ImageTransform) -> EncoderIdentity:
    """What the model's encoder and the geometry are."""
    encoder: Any = model.encoder
    return EncoderIdentity(
        encoder=type(encoder).__name__,
        weights=fingerprint(encoder),
        image_size=encoder.spec.size,
        taps=tuple(encoder.spec.taps),
        geometry=transform.geometry,
    )


def fingerprint(encoder: torch.nn.Module) -> str:
    """A hash of some of the weights, the same whether they are held in single or in half precision."""
    named = sorted(encoder.named_parameters())
    step = max(1, len(named) // HASHED_TENSORS)
    digest = hashlib.sha256()
    for name, value in named[::step]:
        some = value.detach().flatten()[:HASHED_VALUES].to("cpu", KEPT)
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


# -- writing ----------------------------------------------------------------------------------------------------------


def write_references(path: Path, stored: StoredReferences) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
        UserError: the name ends in something else, or it can't be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: expected a file name that ends in {SUFFIX}")
    tensors = _photos(stored) | _features(stored) | _memory(stored)
    if stored.held_out is not None:
        tensors["held_out"] = stored.held_out.to("cpu", KEPT)
    about = {
        "format": FORMAT,
        "identity": json.dumps(asdict(stored.identity)),
        "settings": json.dumps(asdict(stored.settings)),
        "augmentation": stored.augmentation,
        "photos": str(len(stored.shown)),
        "scales": json.dumps(sorted(stored.shown[0])),
        "compared": json.dumps(sorted(stored.features or stored.memory)),
        "thinned": json.dumps(not stored.features),
    }
    try:
        save_tensors({name: value.contiguous() for name, value in tensors.items()}, path, about)
    except CheckpointError as error:
        raise UserError(str(error)) from error


def _photos(stored: StoredReferences) -> dict[str, Tensor]:
    """The pixels, as PNG files."""
    tensors = {}
    for number, shown in enumerate(stored.shown):
        for scale, image in shown.items():
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            tensors[f"photo.{number}.{scale}"] = torch.from_numpy(np.frombuffer(buffer.getvalue(), np.uint8).copy())
    return tensors


def _features(stored: StoredReferences) -> dict[str, Tensor]:
    tensors = {}
    for scale, photos in stored.features.items():
        for layer in range(len(stored.identity.taps)):
            taps = torch.stack([photo.taps[layer] for photo in photos])  # (K, V, N, D_v)
            tensors[f"taps.{scale}.{layer}"] = taps.to("cpu", KEPT)
        tensors[f"embedding.{scale}"] = torch.stack([photo.embedding for photo in photos]).to("cpu", KEPT)
    return tensors


def _memory(stored: StoredReferences) -> dict[str, Tensor]:
    tensors = {}
    for scale, known in stored.memory.items():
        for layer, tap in enumerate(known.bank.taps):
            tensors[f"bank.{scale}.{layer}"] = tap.to("cpu", KEPT)
        tensors[f"owners.{scale}"] = known.bank.owners.cpu()
        tensors[f"places.{scale}"] = known.bank.places.cpu()
        if known.background is not None:
            tensors[f"background.{scale}"] = known.background.direction.cpu()
            tensors[f"background_distance.{scale}"] = torch.tensor(known.background.distance, dtype=torch.float64)
        if known.usual is not None:
            tensors[f"usual.{scale}"] = known.usual.cpu()
    return tensors


# -- reading ----------------------------------------------------------------------------------------------------------


def read_references(path: Path, device: torch.device) -> StoredReferences:
    """Reads what :func:`write_references` wrote.

    Raises:
        UserError: no such file, damaged, or no file of references.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected references that were saved before")
    try:
        about = read_metadata(path)
        if about.get("format") != FORMAT:
            raise UserError(f"{path}: no file of references; expected one that --save-references wrote")
        return _restored(about, read_tensors(path), device)
    except UserError as error:
        raise UserError(str(error)) from error
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); save them again") from error


def _restored(about: Mapping[str, str], tensors: Mapping[str, Tensor], device: torch.device) -> StoredReferences:
    identity = json.loads(about["identity"])
    augmentation = about["augmentation"]
    if augmentation not in VIEWS:
        raise ValueError(f"augmentation {augmentation!r}")
    on_device = {
        name: value.to(device, torch.float32) if value.is_floating_point() else value.to(device)
        for name, value in tensors.items()
        if not name.startswith("photo.")
    }
    compared, layers = json.loads(about["compared"]), range(len(identity["taps"]))
    thinned = json.loads(about["thinned"])
    return StoredReferences(
        identity=EncoderIdentity(**identity | {"taps": tuple(identity["taps"])}),
        settings=_settings(about["settings"]),
        augmentation=augmentation,
        shown=[
            {scale: _picture(tensors[f"photo.{number}.{scale}"]) for scale in json.loads(about["scales"])}
            for number in range(int(about["photos"]))
        ],
        features={} if thinned else {scale: _read_features(on_device, scale, layers) for scale in compared},
        memory={scale: _read_memory(on_device, scale, layers) for scale in compared} if thinned else {},
        held_out=on_device.get("held_out"),
    )


def _settings(text: str) -> ReferenceSettings:
    named: dict[str, Any] = json.loads(text)
    for name, value in named.items():
        named[name] = tuple(value) if isinstance(value, list) else value
    return ReferenceSettings(**named)


def _picture(values: Tensor) -> Image.Image:
    with Image.open(io.BytesIO(values.numpy().tobytes())) as image:
        return image.convert("RGB")


def _read_features(tensors: Mapping[str, Tensor], scale: int, layers: Sequence[int]) -> list[ImageFeatures]:
    taps = [tensors[f"taps.{scale}.{layer}"] for layer in layers]
    embedding = tensors[f"embedding.{scale}"]
    return [ImageFeatures(tuple(tap[photo] for tap in taps), embedding[photo]) for photo in range(len(embedding))]


def _read_memory(tensors: Mapping[str, Tensor], scale: int, layers: Sequence[int]) -> ScaleMemory:
    bank = PatchBank(
        tuple(tensors[f"bank.{scale}.{layer}"] for layer in layers),
        tensors[f"owners.{scale}"],
        tensors[f"places.{scale}"],
    )
    direction = tensors.get(f"background.{scale}")
    background = None if direction is None else Background(direction, float(tensors[f"background_distance.{scale}"]))
    return ScaleMemory(bank, background, tensors.get(f"usual.{scale}"))


def check_fits(
    path: Path, stored: StoredReferences, identity: EncoderIdentity, settings: ReferenceSettings | None
) -> None:
    """Compares a file with the model that shall use it.

    Args:
        settings: None takes whatever the file has.

    Raises:
        UserError: they differ; names each thing in which they do.
    """
    differ = _differences(stored.identity, identity)
    differ += _differences(stored.settings, settings) if settings is not None else []
    if differ:
        raise UserError(
            f"{path}: made for something else: {'; '.join(differ)}. Remember the good photos again with this model"
        )


def _differences(theirs: Any, ours: Any) -> list[str]:
    pairs = [(field.name, getattr(theirs, field.name), getattr(ours, field.name)) for field in fields(theirs)]
    return [f"{name} is {a} in the file and {b} here" for name, a, b in pairs if a != b]
