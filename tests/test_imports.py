"""The names `code` and `datasets` stay their owners', and the wheel carries what the folder has."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "code"
COMPACT = "pretrained_ckpt/anomalygpt_compact"
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
    source = "import anomalygpt, anomalygpt.weights.fetch as s"
    source += "; print(s.__name__, list(anomalygpt.__path__), 'weights' in sys.modules)"
    assert python(source, CODE).split() == ["anomalygpt.weights.fetch", f"['{CODE}']", "False"]


def test_other_libraries_import_beside_our_datasets_folder_and_hugging_faces_wins_over_it(tmp_path: Path) -> None:
    """A regular package wins over a folder without __init__.py, even one that is found first."""
    source = """
import gradio, peft, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_datasets_available
import anomalygpt.weights.fetch
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


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built from, apart from the checkout, where building would leave files."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(CODE, folder / "code", ignore=shutil.ignore_patterns("ckpt", "__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "LICENSE", "README.md", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / COMPACT, folder / COMPACT)
    return folder


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a source distribution, which so holds all that is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, check=True, timeout=250)
    pip(folder, "wheel", str(next(folder.glob("*.tar.gz"))), "-w", ".")
    return next(folder.glob("anomalygpt-*.whl"))


def test_wheel_carries_every_module_and_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        found = {name for name in packed.namelist() if name.startswith("anomalygpt/")}
    files = [
        file for kind in ("*.py", "*.yaml", "*.css", "*.html") for file in CODE.rglob(kind) if "ckpt" not in str(file)
    ]
    expected = {file.relative_to(CODE) for file in files} - {Path("anomalygpt.py")} | {Path("__init__.py")}
    expected |= {file.relative_to(ROOT) for file in (ROOT / COMPACT).iterdir()}
    assert found == {f"anomalygpt/{file.as_posix()}" for file in expected}


@pytest.mark.weights
def test_installed_wheel_inspects_a_photo_anywhere(wheel: Path, tmp_path: Path) -> None:
    pip(tmp_path, "install", "--target", "site", str(wheel))
    fetched = tmp_path / "cache" / "anomalygpt" / "pretrained_ckpt"
    fetched.mkdir(parents=True)
    for name in ("dinov2_vits14", "smollm2_135m_instruct"):
        (fetched / name).symlink_to(ROOT / "pretrained_ckpt" / name)
    photo = ROOT / "images" / "examples" / "pcb"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ANOMALYGPT_HOME")}
    variables |= {"PYTHONPATH": str(tmp_path / "site"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [tmp_path / "site/bin/anomalygpt", "predict", photo / "defect.jpg", "--reference", photo / "good_1.jpg"]
    run = subprocess.run([*command, "--json"], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert json.loads(run.stdout)["status"] == "defective", run.stderr
    source = "import anomalygpt; from anomalygpt import AnomalyGPT; print(anomalygpt.__file__)"
    run = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert Path(run.stdout.strip()) == tmp_path / "site" / "anomalygpt" / "__init__.py", run.stderr


def test_editable_install_finds_the_checkout(source: Path, tmp_path: Path) -> None:
    pip(source, "install", "-e", ".", "--target", str(tmp_path))
    own = f"import site; site.addsitedir({str(tmp_path)!r}); from anomalygpt import AnomalyGPT, cli"
    assert python(f"{own}; print(cli.__file__)", tmp_path).strip() == str(source / "code" / "cli.py")


@pytest.mark.weights
def test_verdict_and_answer_wait_for_no_library_that_they_do_not_use() -> None:
    photo = ROOT / "images" / "examples" / "pcb" / "defect.jpg"
    unused = {"transformers", "peft", "gradio", "deepspeed", "timm", "torchvision", "pandas", "sklearn", "matplotlib"}
    unused |= {"scipy.signal", "torch._dynamo"}
    source = f"import sys; from anomalygpt.predict import main; main([{str(photo)!r}, '--config', 'compact'])"
    assert python(f"{source}; print({unused!r} & set(sys.modules))", CODE).splitlines()[-1] == "set()"
