"""docs/architecture.md names what there is, and its picture is what its script draws."""

import ast
import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE, PAGE = ROOT / "code", ROOT / "docs" / "architecture.md"


def named_functions() -> list[tuple[str, str]]:
    """Every `file:function` of the page, in its order, each once."""
    found = re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE.read_text(encoding="utf-8"))
    return list(dict.fromkeys(found))


def named_files() -> list[str]:
    """Every `folder/file` of the page that stands without a function, in its order, each once."""
    return list(dict.fromkeys(re.findall(r"`(\w+/[\w/]+\.(?:py|yaml|md))`", PAGE.read_text(encoding="utf-8"))))


def defined_in(file: Path) -> set[str]:
    """Functions, classes, and methods as `Class.method`."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    top = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, kinds)]
    methods = {
        f"{owner.name}.{node.name}"
        for owner in top
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    }
    return {node.name for node in top} | methods


def test_page_names_functions() -> None:
    assert len(named_functions()) > 20


@pytest.mark.parametrize(("file", "function"), named_functions(), ids=lambda part: part)
def test_function_exists(file: str, function: str) -> None:
    assert (CODE / file).is_file(), f"code/{file} is not there"
    assert function in defined_in(CODE / file)


@pytest.mark.parametrize("file", named_files())
def test_file_exists(file: str) -> None:
    assert (CODE / file).is_file() or (ROOT / file).is_file()


def test_every_folder_of_code_has_its_paragraph() -> None:
    folders = {path.name for path in CODE.iterdir() if path.is_dir()} - {"ckpt", "__pycache__"}
    described = re.findall(r"^\*\*`(\w+)/`\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(described) == sorted(folders)


def test_committed_picture_is_what_the_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.svg()
    assert script.TARGET.read_text(encoding="utf-8") == drawn, "run python docs/make_architecture.py"
    ET.fromstring(drawn)
