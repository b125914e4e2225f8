"""Saved references: one safetensors file with the photos' pixels, the settings, and the encoder that they belong to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomalygpt.config.settings import ReferenceSettings
from anomalygpt.datasets.transforms import ImageTransform
from anomalygpt.errors import UserError
from anomalygpt.model.anomalygpt import AnomalyGPT
from anomalygpt.model.checkpoint import read_metadata, read_tensors, save_tensors

FORMAT, EARLIER_FORMAT = "anomalygpt references 2", "anomalygpt references 1"
SUFFIX = ".safetensors"
HASHED_TENSORS, HASHED_VALUES = 8, 65536  # so many of the weights, and so many values of each, identify an encoder


def encoder_identity(model: AnomalyGPT, transform: ImageTransform) -> dict[str, Any]:
    """What the pixels and features of references depend on, beside the settings."""
    encoder: Any = model.encoder
    return {
        "encoder": type(encoder).__name__,
        "weights": fingerprint(encoder),
        "image_size": encoder.spec.size,
        "taps": list(encoder.spec.taps),
        "geometry": transform.geometry,
    }


def fingerprint(encoder: torch.nn.Module) -> str:
    """A hash of some of the weights, the same whether they are held in single or in half precision."""
    named = sorted(encoder.named_parameters())
    digest = hashlib.sha256()
    for name, value in named[:: max(1, len(named) // HASHED_TENSORS)]:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[:HASHED_VALUES].to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_references(
    path: Path, identity: Mapping[str, Any], settings: ReferenceSettings, pixels: Mapping[int, NDArray[np.uint8]]
) -> None:
    """Writes a safetensors file, whole or not at all.

    Args:
        pixels: scale -> (K, S, S, 3), the photos as the encoder gets them.

    Raises:
        UserError: the name ends in something else, or it can't be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: expected a file name that ends in {SUFFIX}")
    tensors = {f"photos.{scale}": torch.from_numpy(values) for scale, values in pixels.items()}
    about = {"format": FORMAT, "identity": json.dumps(identity), "settings": settings.model_dump_json()}
    save_tensors(tensors, path, about)


def read_references(path: Path, identity: Mapping[str, Any]) -> tuple[ReferenceSettings, dict[int, NDArray[np.uint8]]]:
    """Reads what :func:`write_references` wrote: the settings and the pixels.

    Raises:
        UserError: no such file, damaged, no file of references, or one that belongs to another encoder.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected references that were saved before")
    about = read_metadata(path)
    if about.get("format") == EARLIER_FORMAT:
        raise UserError(f"{path}: saved by an earlier version: teach the part again from its photos")
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: no file of references; expected one that --save-references wrote")
    try:
        saved = json.loads(about["identity"])
        settings = ReferenceSettings.model_validate_json(about["settings"])
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({type(error).__name__}: {reason}); save them again") from error
    differ = [
        f"{name} is {saved.get(name)} in the file and {ours} here"
        for name, ours in identity.items()
        if saved.get(name) != ours
    ]
    if differ:
        raise UserError(
            f"{path}: made for something else: {'; '.join(differ)}. Remember the good photos again with this model"
        )
    return settings, {int(name.removeprefix("photos.")): value.numpy() for name, value in read_tensors(path).items()}
