"""Where tests find what the repository does not ship: real photos, weights, LLaMA's tokeniser, full-size numbers."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "pretrained_ckpt"


def shared(relative: str) -> Path:
    """A path in the folder of shared test material, or a skip that says what is absent."""
    folder = Path(os.environ.get("ANOMALYGPT_SHARED", ROOT.parent / "shared"))
    path = folder / relative
    if not path.exists():
        pytest.skip(
            f"needs {relative}: not found beside the repository (set ANOMALYGPT_SHARED to the folder that holds it)"
        )
    return path


def needs_weights(*names: str) -> None:
    """Skips a test, saying which weights are absent."""
    absent = [name for name in names if not any((WEIGHTS / name).glob("*.safetensors"))]
    if absent:
        pytest.skip(f"needs pretrained_ckpt/{', '.join(absent)} (cd code && python fetch_weights.py)")
