"""What an indexer returns: one typed record an image, and the error that a wrong data tree raises."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from anomalygpt.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
OFFENDERS_SHOWN = 3

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

GOOD = "good"


class DatasetError(UserError, ValueError):
    """The data on disk are not what was asked for. The message is one line: what is wrong, where, what was
    expected.
    """


@dataclass(frozen=True)
class ImageRecord:
    """One photo of a data set.

    image: the photo's file. class_name: the folder's own name, such as `metal_nut`. split: `validation` only where
    a data set has one of its own (LOCO). defect: the defect's name as the data set has it, mostly a folder's;
    `good` for a normal photo. mask: what marks the defect, None where there is nothing: an image, a folder of images
    that count together (LOCO), or a `.mat` file (CrackForest); `transforms.load_mask` reads them all.
    """

    image: Path
    class_name: str
    split: Split
    is_anomalous: bool
    defect: str
    mask: Path | None


def in_order(records: Iterable[ImageRecord]) -> list[ImageRecord]:
    """The records sorted by class, split (train, validation, test) and path."""
    return sorted(records, key=lambda record: (record.class_name, SPLITS.index(record.split), record.image))


def list_images(folder: Path) -> list[Path]:
    """The image files directly in `folder`, sorted by name; hidden files are skipped. Empty where there is no
    folder.
    """
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def list_folders(folder: Path) -> list[Path]:
    """The folders directly in `folder`, sorted by name; hidden ones are skipped. Empty where there is no
    folder.
    """
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def require_folder(root: Path) -> Path:
    """`root` as a Path. Raises DatasetError when it is not a folder."""
    root = Path(root)
    if not root.exists():
        raise DatasetError(f"{root}: no such folder")
    if not root.is_dir():
        raise DatasetError(f"{root}: this is a file, a folder was expected")
    return root


def first_offenders(offenders: Iterable[object]) -> str:
    """The first few offenders and how many more there are, for an error's one line."""
    listed = [str(offender) for offender in offenders]
    shown = ", ".join(listed[:OFFENDERS_SHOWN])
    more = len(listed) - OFFENDERS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def require_files(root: Path, records: Sequence[ImageRecord]) -> None:
    """Raises DatasetError naming the photos and masks of `records` that are not there."""
    paths = [path for record in records for path in (record.image, record.mask) if path is not None]
    missing = [_below(root, path) for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(f"{root}: {len(missing)} of {len(paths)} files are missing: {first_offenders(missing)}")


def _below(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def choose_classes(root: Path, found: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The wanted classes in sorted order, all of `found` for None. Raises DatasetError naming those that
    exist.
    """
    if wanted is None:
        return sorted(found)
    unknown = sorted(set(wanted) - set(found))
    if unknown:
        raise DatasetError(
            f"{root}: no class {first_offenders(unknown)}; the classes here are {', '.join(sorted(found))}"
        )
    return sorted(set(wanted))
