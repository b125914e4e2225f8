"""What an indexer returns: one typed record an image, and the error that a wrong data tree raises."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
OFFENDERS_SHOWN = 3

Split = Literal["train", "test"]


class DatasetError(ValueError):
    """The data on disk are not what was asked for. The message is one line: what is wrong, where, what was
    expected.
    """


@dataclass(frozen=True)
class ImageRecord:
    """One photo of a data set.

    image: the photo's file. class_name: the folder's own name, such as `metal_nut`. defect: the defect's
    folder name, `good` for a normal photo. mask: the file that marks the defect, None where there is none.
    """

    image: Path
    class_name: str
    split: Split
    is_anomalous: bool
    defect: str
    mask: Path | None


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
