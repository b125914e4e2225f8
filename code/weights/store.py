"""The weights folder: what is there and complete, and how a new weight appears in it all at once."""

import json
import logging
from pathlib import Path
from typing import Any

from anomalygpt.weights.download import sha256_of
from anomalygpt.weights.sources import Weight

logger = logging.getLogger(__name__)

# Written last, beside the weight: what it is, where it came from, and size and SHA-256 of each file.
MANIFEST = "manifest.json"
# A safetensors file starts with the length of its header, 8 bytes, little-endian.
_HEADER_LENGTH_BYTES = 8


def find_complete(weight: Weight, root: Path) -> Path | None:
    """The weight's path when all its files are there in full, else None.

    Sizes are compared with the manifest, nothing is hashed: this runs at every start. Files that somebody put
    there by hand have no manifest; then each must exist, and a safetensors file must be as long as its header
    says.
    """
    folder = root / weight.folder
    recorded = read_manifest(folder).get("files", {})
    for name in sorted({*weight.files, *recorded}):
        file = folder / name
        if not file.is_file():
            return None
        size = recorded[name]["size"] if name in recorded else _expected_size(file)
        if file.stat().st_size != size:
            logger.warning("%s has %d bytes instead of %d, so it is not used", file, file.stat().st_size, size)
            return None
    return root / weight.path


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `publish` noted about the weight in this folder; empty when it was put there by hand."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest


def _expected_size(file: Path) -> int:
    """The length in bytes that a safetensors file claims for itself; for any other file the length it has."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return max(size, 1)
    with file.open("rb") as stream:
        header_length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
        try:
            header = json.loads(stream.read(min(header_length, size)))
        except ValueError:
            return _HEADER_LENGTH_BYTES + header_length
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return _HEADER_LENGTH_BYTES + header_length + max(ends, default=0)


def publish(weight: Weight, staged: Path, root: Path, source: str) -> Path:
    """Moves a finished folder to its place, with a manifest; both must lie on one file system.

    A new weight appears by one rename. Over an incomplete one the files are replaced one by one, the old
    manifest first taken away and the new one last put there, so that a kill in between leaves an incomplete
    weight, never a mixed one that counts as complete.
    """
    _write_manifest(weight, staged, source)
    target = root / weight.folder
    if not target.exists():
        staged.rename(target)
        return root / weight.path
    (target / MANIFEST).unlink(missing_ok=True)
    for name in weight.files:
        (target / name).unlink(missing_ok=True)
    files = sorted((file for file in staged.rglob("*") if file.is_file()), key=lambda file: file.name == MANIFEST)
    for file in files:
        place = target / file.relative_to(staged)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return root / weight.path


def _write_manifest(weight: Weight, staged: Path, source: str) -> None:
    files = {}
    for file in sorted(staged.rglob("*")):
        if file.is_file():
            file.chmod(0o644)  # Some writers make files that only their owner can read.
            name = file.relative_to(staged).as_posix()
            files[name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    facts = {"name": weight.name, "title": weight.title, "licence": weight.licence, "origin": weight.origin}
    manifest = {**facts, "source": source, "files": files}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
