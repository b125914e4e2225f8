"""Saved references: one safetensors file with the photos' pixels, the settings, and the encoder that they belong to."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from anomalygpt.config.settings import PhotoSettings, ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import fingerprint, read_metadata, read_tensors, save_tensors

FORMAT, EARLIER_FORMAT = "anomalygpt references 2", "anomalygpt references 1"
SUFFIX = ".safetensors"
# Options that only files of the earlier format have, and the values at which they change nothing.
REMOVED_OPTIONS: dict[str, Any] = {"tiling": False, "neighbourhood": 1, "distance": "cosine", "normalise": False}
REMOVED_OPTIONS |= {"foreground": "off", "coreset_share": 1.0, "coreset_from": 0}
Picture = int | tuple[int, ...]  # a photo at a scale, or (scale, row, column) of a tile of it
Pixels = dict[Picture, NDArray[np.uint8]]  # (K, S, S, 3) each


def encoder_identity(model: AnomalyGPT, transform: ImageTransform) -> dict[str, Any]:
    """What the pixels and features of references depend on, beside the settings."""
    encoder: Any = getattr(model.encoder, "torch", model.encoder)  # the same references, whatever runs it
    return {
        "encoder": type(encoder).__name__,
        "weights": fingerprint(encoder),
        "image_size": encoder.spec.size,
        "taps": list(encoder.spec.taps),
        "geometry": transform.geometry,
    }


def write_references(
    path: Path,
    identity: Mapping[str, Any],
    settings: ReferenceSettings,
    pixels: Mapping[Picture, NDArray[np.uint8]],
    photo_settings: PhotoSettings,
    observed: Mapping[str, Any],
) -> None:
    """Writes a safetensors file, atomically.

    Args:
        pixels: picture -> (K, S, S, 3), the photos as the encoder gets them.
        photo_settings: how they were read.
        observed: see ``References.observed``.

    Raises:
        UserError: the name ends in something else, or it can't be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: expected a file name that ends in {SUFFIX}")
    named = {picture: picture if isinstance(picture, tuple) else (picture,) for picture in pixels}
    tensors = {".".join(map(str, ("photos", *named[key]))): torch.from_numpy(value) for key, value in pixels.items()}
    about = {"format": FORMAT, "identity": json.dumps(identity), "settings": settings.model_dump_json()}
    about |= {"photos": photo_settings.model_dump_json(), "observed": json.dumps(observed)}
    save_tensors(tensors, path, about)


def saved_photo_settings(path: Path) -> PhotoSettings | None:
    """How the photos of a file of references were read; None where it does not say so."""
    about = read_metadata(path)
    is_said = about.get("format") == FORMAT and "photos" in about
    return PhotoSettings.model_validate_json(about["photos"]) if is_said else None


def read_references(
    path: Path, identity: Mapping[str, Any]
) -> tuple[ReferenceSettings, Pixels, dict[str, dict[str, Any]]]:
    """Reads what :func:`write_references` wrote, in the earlier format too: settings, pixels and observed scores.

    Raises:
        UserError: no such file, damaged, no file of references, or one that belongs to another encoder.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected references that were saved before")
    about = read_metadata(path)
    if about.get("format") not in (FORMAT, EARLIER_FORMAT):
        raise UserError(f"{path}: no file of references; expected one that --save-references wrote")
    try:
        saved = json.loads(about["identity"])
        settings, pixels = (_read if about["format"] == FORMAT else _read_earlier)(path, about)
        observed = json.loads(about.get("observed", "{}"))
    except (KeyError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({type(error).__name__}: {reason}); save them again") from error
    theirs = {name: saved.get(name) for name, ours in identity.items() if saved.get(name) != ours}
    if theirs:
        differ = "; ".join(f"{name} is {value} in the file and {identity[name]} here" for name, value in theirs.items())
        raise UserError(f"{path}: made for something else: {differ}. Save the references again with this model")
    return settings, pixels, observed


def _read(path: Path, about: Mapping[str, str]) -> tuple[ReferenceSettings, Pixels]:
    pixels: Pixels = {}
    for name, value in read_tensors(path).items():
        picture = tuple(map(int, name.split(".")[1:]))
        pixels[picture if len(picture) > 1 else picture[0]] = value.numpy()
    return ReferenceSettings.model_validate_json(about["settings"]), pixels


def _read_earlier(path: Path, about: Mapping[str, str]) -> tuple[ReferenceSettings, Pixels]:
    """The earlier format: a PNG per photo and scale, all options but the preset; its features are not read."""
    options, tensors = json.loads(about["settings"]), read_tensors(path)
    for name, default in REMOVED_OPTIONS.items():
        if (value := options.pop(name, default)) != default:
            what = f"{path}: saved with {name} {value!r}"
            raise UserError(f"{what}, an option that was removed: save the references again")

    def decode(name: str) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(tensors[name].numpy().tobytes())) as image:
            return np.asarray(image.convert("RGB"))

    photos, scales = range(int(about["photos"])), json.loads(about["scales"])
    pixels = {scale: np.stack([decode(f"photo.{number}.{scale}") for number in photos]) for scale in scales}
    return ReferenceSettings(preset="custom", **options), pixels
