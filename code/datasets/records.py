"""What an indexer returns: one record per photo. Helpers that all indexers share."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from anomalygpt.errors import UserError, first_offenders, reading_warning

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".gif", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".pgm", ".ppm", ".pnm", ".pbm"}
)
# Of files that lie beside photos and are known not to be any.
OTHER_SUFFIXES = {".txt", ".csv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".ini", ".db", ".html"}
OVERLAY, MAP = "_overlay.png", "_map.tiff"  # what the names of predict.py's results end in
RESULTS = "results.jsonl"

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

GOOD = "good"


class DatasetError(UserError, ValueError):
    """The data on disk are not as expected. The message is one line: what is wrong, where, what was expected."""


@dataclass(frozen=True)
class ImageRecord:
    """One photo of a data set. Records sort by class, split (train, validation, test) and path."""

    image: Path
    class_name: str  # the folder's own name, such as ``metal_nut``
    split: Split  # ``validation`` only where a data set has such a split (LOCO, CSV)
    is_anomalous: bool
    defect: str  # its name in the data set, ``good`` for a normal photo
    masks: tuple[Path, ...] = ()  # that together mark the defect, for ``masks.load_mask``; a defect may have none

    def __lt__(self, other: "ImageRecord") -> bool:
        first, second = ((each.class_name, SPLITS.index(each.split), each.image) for each in (self, other))
        return first < second


def list_images(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, sorted by name, without hidden ones."""
    return without_results(p for p in _entries(folder) if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())


def without_results(files: Iterable[Path]) -> list[Path]:
    """The files but for the overlays and maps that ``predict.py --out`` wrote; these are counted in the log."""
    names = {str(path): path for path in files}
    stems = [(name, name.removesuffix(end)) for name in names for end in (OVERLAY, MAP) if name.endswith(end)]
    own = [name for name, stem in stems if os.path.isfile(stem + OVERLAY) and os.path.isfile(stem + MAP)]
    if own:
        logger.warning("%s: %d overlays and maps of an earlier run are left out", Path(min(own)).parent, len(own))
    return [path for name, path in names.items() if name not in own]


def find_photos(folder: Path, recursive: bool = False) -> list[Path]:
    """The photos in a folder, and with ``recursive`` in those below it, sorted; reports what else is there."""
    photos = list_images(folder)
    known = IMAGE_SUFFIXES | OTHER_SUFFIXES
    if others := [path.name for path in _entries(folder) if path.suffix.lower() not in known and path.is_file()]:
        said = f"{len(others)} files are not read, no photos by their names: {first_offenders(others)}"
        reading_warning(f"{folder}: {said}")
    walked = [(Path(sub), names) for sub, names, _ in os.walk(folder)]
    if links := [str(sub / name) for sub, names in walked for name in names if (sub / name).is_symlink()]:
        reading_warning(f"{folder}: {len(links)} linked folders are not read; name them, too: {first_offenders(links)}")
    below = sorted(sub.relative_to(folder) for sub, _ in walked)[1:]
    shown = [folder / sub for sub in below if "." not in {part[0] for part in sub.parts}]
    if (deeper := [photo for sub in shown for photo in list_images(sub)]) and not recursive:
        places = first_offenders(sorted({str(path.parent.relative_to(folder)) for path in deeper}))
        said = f"{len(deeper)} photos in sub-folders ({places}) are not read; --recursive reads them"
        reading_warning(f"{folder}: {said}")
    return sorted(photos + deeper) if recursive else photos


def list_folders(folder: Path) -> list[Path]:
    """The folders directly in ``folder``, sorted by name, without hidden ones; a link to nothing is an error."""
    entries = _entries(folder)
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise DatasetError(f"{path}: a link to {path.readlink()}, which is not there")
    return [path for path in entries if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in require_folder(folder).iterdir() if not path.name.startswith("."))


def require_folder(root: Path) -> Path:
    """``root`` as a Path. Raises :class:`DatasetError` when it is not a folder."""
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: {'this is a file, a folder was expected' if root.exists() else 'no such folder'}")
    return root


def choose_classes(root: Path, found: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The wanted classes, sorted; all of ``found`` for None. Raises :class:`DatasetError` for an unknown one."""
    if not root.exists():
        raise DatasetError(f"{root}: no such file or folder")
    if unknown := sorted({*(wanted or ())} - {*found}):
        known = ", ".join(sorted(found))
        raise DatasetError(f"{root}: no class {first_offenders(unknown)}; the classes here are {known}")
    return sorted({*(found if wanted is None else wanted)})
