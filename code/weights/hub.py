"""The first road to a weight: its own repository on the Hugging Face hub.

`HF_ENDPOINT`, `HF_HUB_OFFLINE` and a token count as always.
"""

import hashlib
import logging
from pathlib import Path

from anomalygpt.weights.download import LOCAL_ERRORS, check_sha256
from anomalygpt.weights.sources import HubSource, SourceError

logger = logging.getLogger(__name__)

# Seconds to wait for the hub's first word: where it is blocked, the next source should have its turn soon.
_ANSWER_TIMEOUT = 8.0
_SHA256_DIGITS = 64
_SHA1_DIGITS = 40


def fetch_from_hub(source: HubSource, folder: Path) -> str:
    """Brings the source's files into `folder` and returns `repository@commit`, what they really are.

    All files come from the commit that the revision means at the first request, and each is compared with the
    digest that the hub declares for it.

    Raises:
        SourceError: switched off, not reachable, file not there, or a digest differs.
        OSError: the disk is full or not writable.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise SourceError("HF_HUB_OFFLINE is set")
    revision = source.revision
    try:
        for file in source.files:
            url = hf_hub_url(source.hub, file, revision=revision)
            declared = get_hf_file_metadata(url, timeout=_ANSWER_TIMEOUT)
            revision = declared.commit_hash or revision
            hf_hub_download(source.hub, file, revision=revision, local_dir=folder, etag_timeout=_ANSWER_TIMEOUT)
            _check_digest(folder / file, declared.etag or "")
    except SourceError:
        raise
    except Exception as error:  # The hub's client passes on its HTTP library's errors, and which one that is changes.
        if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
            raise
        refused = isinstance(error, HfHubHTTPError)
        raise SourceError(f"{'refused' if refused else 'not reachable'} ({_first_line(error)})") from error
    return f"{source.hub}@{revision}"


def _check_digest(path: Path, declared: str) -> None:
    """Large files are declared by their SHA-256, small ones by git's blob digest."""
    if len(declared) == _SHA256_DIGITS:
        check_sha256(path, declared, shown_as=path.name)
    elif len(declared) == _SHA1_DIGITS:
        content = path.read_bytes()
        actual = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if actual != declared:
            path.unlink()
            raise SourceError(f"{path.name} is corrupt: its git digest should be {declared}, but is {actual}")
    else:
        logger.warning("%s: the hub declares no digest, so only its size was checked", path.name)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
