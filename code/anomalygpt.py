"""The import name: every module of this folder is `anomalygpt.…`.

The folder is called `code`, like a module of the standard library, so it can be no package itself. Giving
this one module a `__path__` makes it the package. In a wheel it is the package's ``__init__.py`` (``setup.py``).
"""

from pathlib import Path
from typing import Any

__path__ = [str(Path(__file__).resolve().parent)]


def __getattr__(name: str) -> Any:
    """``AnomalyGPT``, imported when it is asked for, because that takes seconds."""
    if name == "AnomalyGPT":
        from anomalygpt.inference.library import AnomalyGPT

        return AnomalyGPT
    raise AttributeError(f"module 'anomalygpt' has no attribute {name!r}")
