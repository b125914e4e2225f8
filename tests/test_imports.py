"""The names `code` and `datasets` stay their owners', and the wheel carries what the folder has."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "code"
# What the entry points share, and the import name.
SHARED = {"anomalygpt.py", "errors.py", "files.py", "distributed.py"}
ENTRY_POINTS = sorted({file.name for file in CODE.glob("*.py")} - SHARED)


def python(source: str, folder: Path, *search: Path) -> str:
    """Runs a script as if it lay in `folder`, with further folders to search, and returns what it prints."""
    paths = [str(path) for path in (folder, *search)]
    script = f"import sys; sys.path[:0] = {paths!r}\n{source}"
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("folder", [ROOT, CODE], ids=["repository", "code"])
def test_code_is_the_standard_librarys(folder: Path) -> None:
    output = python("import pdb, code; print(code.__file__); code.InteractiveConsole(); pdb.Pdb()", folder)
    assert Path(output.strip()).name == "code.py"
    assert not Path(output.strip()).is_relative_to(ROOT / "code")


def test_every_module_of_ours_has_one_name() -> None:
    source = "import anomalygpt, anomalygpt.weights.sources as s"
    source += "; print(s.__name__, list(anomalygpt.__path__), 'weights' in sys.modules)"
    assert python(source, CODE).split() == ["anomalygpt.weights.sources", f"['{CODE}']", "False"]


def test_other_libraries_import_beside_our_datasets_folder_and_hugging_faces_wins_over_it(tmp_path: Path) -> None:
    """A regular package wins over a folder without __init__.py, even one that is found first."""
    source = """
import gradio, peft, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_datasets_available
import anomalygpt.weights.sources
print(is_datasets_available())
"""
    assert python(source, CODE).strip().splitlines()[-1] in ("True", "False")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text("__version__ = '9.9.9'\nclass Dataset: ...\n")
    info = tmp_path / "datasets-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: datasets\nVersion: 9.9.9\n")
    source += "import datasets; print(datasets.__version__, is_datasets_available())"
    assert python(source, CODE, tmp_path).strip().splitlines()[-1] == "9.9.9 True"


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_entry_point_explains_itself(entry_point: str) -> None:
    run = subprocess.run([sys.executable, entry_point, "--help"], cwd=CODE, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout


def test_listed_packages_are_the_folders_with_modules_or_data() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    with (ROOT / "pyproject.toml").open("rb") as stream:
        listed = tomllib.load(stream)["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(CODE) for kind in ("*.py", "*.yaml") for file in CODE.rglob(kind)}
    assert listed == sorted(".".join(("anomalygpt", *folder.parts)) for folder in folders)


def test_wheel_carries_every_module_and_its_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(CODE, source / "code", ignore=shutil.ignore_patterns("ckpt", "__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "README.md", "setup.py"):
        shutil.copy(ROOT / name, source)
    weights = "pretrained_ckpt/anomalygpt_compact"
    shutil.copytree(ROOT / weights, source / weights)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", ".", *options]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(tmp_path.glob("anomalygpt-*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("anomalygpt/")}
    files = [file for kind in ("*.py", "*.yaml", "*.css", "*.html") for file in (source / "code").rglob(kind)]
    expected = {file.relative_to(source / "code") for file in files} - {Path("anomalygpt.py")} | {Path("__init__.py")}
    expected |= {file.relative_to(source) for file in (source / weights).iterdir()}
    assert packed == {f"anomalygpt/{file.as_posix()}" for file in expected}


@pytest.mark.weights
def test_verdict_and_answer_wait_for_no_library_that_they_do_not_use() -> None:
    photo = ROOT / "images" / "examples" / "pcb" / "defect.jpg"
    unused = {"transformers", "peft", "gradio", "deepspeed", "timm", "torchvision", "pandas", "sklearn", "matplotlib"}
    unused |= {"scipy.signal", "torch._dynamo"}
    source = f"import sys; from anomalygpt.predict import main; main([{str(photo)!r}, '--config', 'compact'])"
    assert python(f"{source}; print({unused!r} & set(sys.modules))", CODE).splitlines()[-1] == "set()"
