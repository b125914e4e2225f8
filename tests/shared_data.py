"""Where tests find what the repository does not ship: real photos, LLaMA's tokeniser file, full-size numbers."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(relative: str) -> Path:
    """A path in the folder of shared test material, or a skip that says what is absent."""
    folder = Path(os.environ.get("ANOMALYGPT_SHARED", ROOT.parent / "shared"))
    path = folder / relative
    if not path.exists():
        pytest.skip(
            f"needs {relative}: not found beside the repository (set ANOMALYGPT_SHARED to the folder that holds it)"
        )
    return path
