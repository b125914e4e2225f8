"""Whether a photo shows the same part and view as others, by the encoder's class token."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomalygpt.errors import UserError

KEY = "embeddings"


def cosine_distances(embedding: Tensor, known: Tensor) -> Tensor:
    """From a unit vector (D,) to each of some others (N, D), (N,) 0..2."""
    return 1 - known.float() @ embedding.float()


def save_known_parts(path: Path, embeddings: Tensor) -> None:
    """Writes unit class tokens (N, D) of good photos of the parts that a model was trained on."""
    save_file({KEY: embeddings.half().contiguous()}, path)


def load_known_parts(path: Path, width: int) -> Tensor:
    """What :func:`save_known_parts` wrote, (N, ``width``) float16.

    Raises:
        UserError: no such file, or it is of another encoder.
    """
    try:
        embeddings = load_file(path)[KEY]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"inference.known_parts: {path}: expected class tokens of known parts ({error})") from error
    if embeddings.ndim != 2 or embeddings.shape[1] != width:
        raise UserError(f"inference.known_parts: {path}: expected {width} numbers a photo, as this encoder's")
    return embeddings
