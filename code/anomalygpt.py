"""The import name: every module of this folder is `anomalygpt.…`.

The folder is called `code`, like a module of the standard library, so it can be no package itself. Giving
this one module a `__path__` makes it the package. An installed wheel maps the folder to `anomalygpt` and
needs no such help.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
