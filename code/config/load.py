"""YAML + dotted overrides -> a checked :class:`ExperimentConfig`; and back to a file."""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from anomalygpt.config.schema import ExperimentConfig
from anomalygpt.config.settings import explain
from anomalygpt.errors import UserError
from anomalygpt.files import read_yaml

CONFIG_FOLDER = Path(__file__).parent
PRETRAINED = "pretrained_ckpt"  # the folder of all weights
# The last keys of settings that are paths.
INPUTS, OUTPUTS = ("weights", "graph", "path", "root", "conversations", "images", "known_parts"), ("output", "log")
_typed_paths: set[str] = set()  # those that are not in the current folder


def home() -> Path:
    """The folder that relative paths in a config start at: ANOMALYGPT_HOME, else the checkout that holds ``code/``.

    An installed wheel has no checkout around it and uses the current folder.
    """
    if chosen := os.environ.get("ANOMALYGPT_HOME"):
        return Path(chosen).expanduser()
    checkout = CONFIG_FOLDER.parents[1]
    return checkout if (checkout / PRETRAINED).is_dir() else Path.cwd()


def resolve(path: str) -> Path:
    """A path from a config as the file system has it: relative ones start at :func:`home`.

    For an installed wheel, weights that are not in :func:`home` are those that it brings, or, where there is no folder
    of weights either, in the user's cache (``$XDG_CACHE_HOME/anomalygpt``).
    """
    full = (home() / Path(path).expanduser()).resolve()
    package = CONFIG_FOLDER.parent
    if full.exists() or Path(path).parts[:1] != (PRETRAINED,) or not (package / PRETRAINED).is_dir():
        return full
    if path != PRETRAINED and (package / path).exists():
        return package / path
    if "ANOMALYGPT_HOME" in os.environ or (home() / PRETRAINED).is_dir():
        return full
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anomalygpt" / path


def nor(path: str) -> str:
    """For the error about an absent path from a config: the place before, where it was looked for if it was typed."""
    return f", nor is {Path.cwd() / path}" if path in _typed_paths else ""


def _typed(value: Any, key: str = "") -> Any:
    """Typed settings, of an override or a user's YAML file, with those paths absolute that start in the current folder:
    with ``./`` or ``../`` at the beginning all, others if they exist there, or a run's folder could be made there.
    """
    if isinstance(value, dict):
        return {name: _typed(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, key) for inner in value]
    if key not in (*INPUTS, *OUTPUTS) or not isinstance(value, str) or not value:
        return value
    here, there = (Path.cwd() / Path(value).expanduser()).resolve(), resolve(value)
    if here == there:
        return value
    made = key in OUTPUTS and not there.exists() and here.parent.is_dir()
    if here.exists() or made or value.startswith(("./", "../")):
        return str(here)
    _typed_paths.add(value)
    return value


def commit() -> str | None:
    """The commit of this code, with ``-dirty`` where tracked files have changed; None outside a checkout."""
    checkout = CONFIG_FOLDER.parents[1]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    if (checkout / ".git").exists():  # else git would go up, to the repository that an environment is installed in
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
    return None


def names() -> list[str]:
    """The experiments that ship with the product."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def load_config(source: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads a shipped experiment (``compact``) or a YAML file. Raises :class:`UserError`: one of its settings is wrong.

    ``overrides`` are ``key.sub=value`` each, the value in YAML's syntax. Another ``inference.references.preset`` drops
    the file's values of its own: all but the text map's, and for ``official``, which takes no others, these too.
    """
    path = _find(source)
    values = _read(path)
    preset = _nested(parsed_overrides(overrides), "inference", "references").get("preset")
    references = _nested(values, "inference", "references")
    if preset not in (None, references.get("preset")):
        for name in [name for name in references if preset == "official" or not name.startswith("text_")]:
            del references[name]
    for override in overrides:
        _apply(values, override)
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        origin = f"{path} with {' '.join(overrides)}" if overrides else path
        raise UserError("\n".join(f"{origin}: {line}" for line in explain(error))) from error


def parsed_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The overrides alone, nested. Raises :class:`UserError` where one is not ``key.sub=value``."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply(values, override)
    return values


def to_yaml(config: ExperimentConfig) -> str:
    """Every setting, defaults included, as :func:`load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_FOLDER / f"{source}.yaml"
    elif not path.is_file() and path.parent == Path("."):
        path = CONFIG_FOLDER / path.name
    if not path.is_file():
        raise UserError(f"no config {str(source)!r}; expected a YAML file, or one of {', '.join(names())}")
    return path


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings, merged into those of its ``base``."""
    if path in seen:
        raise UserError(f"{path}: 'base' leads back to itself")
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected settings (key: value), found {type(values).__name__}")
    values = values if path.parent == CONFIG_FOLDER else _typed(values)
    base = values.pop("base", None)
    if base is None:
        return values
    sibling = path.parent / f"{base}.yaml"
    return _merged(_read(sibling if sibling.is_file() else _find(str(base)), (*seen, path)), values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | changes | {key: _merged(base[key], changes[key]) for key in both}


def _nested(values: Any, *keys: str) -> dict[str, Any]:
    """The settings below some keys; empty where there are none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets the one value of an override, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: expected key.sub=value, as in training.optimizer.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UserError(f"override {override!r}: the value is not valid YAML") from error
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent!r} holds a value, not further settings")
    node[last] = _typed(value, last)
