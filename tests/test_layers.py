"""The layers of `code/`, read off its import statements: nothing imports what lies above it.

errors below all; config 0; datasets, model, weights 1; inference, training 2; evaluation, serving 3; the
files of `code/` itself, the entry points, 4.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CODE = Path(__file__).resolve().parents[1] / "code"
LAYERS = dict.fromkeys(("errors", "files", "distributed"), -1) | dict.fromkeys(("datasets", "model", "weights"), 1)
LAYERS |= {"config": 0, "inference": 2, "training": 2, "evaluation": 3, "serving": 3}
ENTRY_POINT = 4
# The import name is no module to run.
IMPORT_NAME = "anomalygpt"
# Neither of a pair imports the other.
STRANGERS = [{"datasets", "model"}, {"datasets", "weights"}]
# They would shadow a module of the standard library or a package that others import.
FORBIDDEN = ("evaluate.py", "types.py", "profile.py", "inspect.py", "logging.py", "code.py")
# Would be collected as tests, but for the original's names of two commands, which hold none.
ORIGINAL_NAMES = {"test_mvtec.py", "test_visa.py"}


class Import(NamedTuple):
    """One import statement: the file it stands in, below code/, its line, and the module's dotted name."""

    file: str
    line: int
    module: str


def entry_points() -> list[Path]:
    return sorted(file for file in CODE.glob("*.py") if file.stem not in {IMPORT_NAME, *LAYERS})


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import in a module, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from anomalygpt import model` names the part after `import`.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == IMPORT_NAME else [module]
            yield from (Import(file, node.lineno, name) for name in names)


def part_of_module(module: str) -> str | None:
    """The part of ours that a module belongs to; None for other people's."""
    first, _, rest = module.partition(".")
    return rest.split(".")[0] if first == IMPORT_NAME and rest else None


def layer(part: str) -> int:
    return LAYERS.get(part, ENTRY_POINT)


def complaint(found: Import) -> str | None:
    """What is wrong with an import, or None."""
    importer, imported = Path(found.file).parts[0].removesuffix(".py"), part_of_module(found.module)
    bare = found.module.split(".")[0]
    if found.module.startswith("."):
        return "is relative: write anomalygpt.…"
    if imported is None:
        own = {*LAYERS, *(file.stem for file in CODE.glob("*.py"))} - {IMPORT_NAME}
        # Hugging Face's `datasets` is none of our business, so a bare one can only mean our folder.
        return f"is bare: write anomalygpt.{bare}" if bare in own else None
    if importer == imported:
        return None
    if layer(imported) == ENTRY_POINT:
        return "is an entry point, which nobody imports"
    if layer(imported) > layer(importer):
        return f"is of layer {layer(imported)}, above {importer}'s {layer(importer)}"
    if {importer, imported} in STRANGERS:
        return f"must stay a stranger to {importer}"
    allowed = Path(found.file).name == "build.py" or found.module == "anomalygpt.config.settings"
    if imported == "config" and layer(importer) == 1 and not allowed:
        return "stays out of this layer's classes: only its build.py knows the experiment's configuration"
    return None


def test_no_import_breaks_the_layers() -> None:
    broken = []
    for path in CODE.rglob("*.py"):
        file = path.relative_to(CODE)
        if "ckpt" not in file.parts:
            found = imports_of(path.read_text(encoding="utf-8"), file.as_posix())
            broken += [f"code/{file}:{each.line} {each.module} {why}" for each in found if (why := complaint(each))]
    assert broken == []


@pytest.mark.parametrize(
    ("file", "statement", "words"),  # None: nothing is wrong
    [
        ("model/encoder.py", "from anomalygpt.datasets.records import Record", "stranger"),
        ("datasets/mvtec.py", "import anomalygpt.model.encoder", "stranger"),
        ("model/encoder.py", "from anomalygpt import inference", "above"),
        ("config/load.py", "def late():\n    from anomalygpt.model.build import build", "above"),
        ("training/loop.py", "from anomalygpt.evaluation.metrics import auroc", "above"),
        ("evaluation/report.py", "from anomalygpt.train import main", "entry point"),
        ("errors.py", "from anomalygpt.config.load import UserError", "above"),
        ("serve.py", "from anomalygpt.predict import main", "entry point"),
        ("training/loop.py", "from model.encoder import Encoder", "bare"),
        ("predict.py", "import datasets", "bare"),
        ("model/llm.py", "from .encoder import Encoder", "relative"),
        ("model/llm.py", "from anomalygpt.config.schema import Config", "build.py"),
        ("model/build.py", "from anomalygpt.config.schema import Config", None),
        ("inference/predictor.py", "from anomalygpt.model.anomalygpt import AnomalyGPT", None),
        ("model/llm.py", "from anomalygpt.errors import UserError", None),
        ("web_demo.py", "from anomalygpt.evaluation.metrics import auroc", None),
        ("model/llm.py", "from anomalygpt.model.chat import Turn\nimport torch.utils.data", None),
    ],
)
def test_each_kind_of_break_is_seen_and_imports_downwards_are_allowed(
    file: str, statement: str, words: str | None
) -> None:
    whys = [why for found in imports_of(statement, file) if (why := complaint(found))]
    assert any(words in why for why in whys) if words else not whys


def test_no_file_of_code_shadows_a_module_or_package_of_others() -> None:
    """An __init__.py in code/ would shadow the standard library's, one in datasets/ Hugging Face's package."""
    found = {str(file.relative_to(CODE)) for name in ("__init__.py", "test_*.py") for file in CODE.rglob(name)}
    assert found == ORIGINAL_NAMES
    assert [file.name for pattern in FORBIDDEN for file in CODE.glob(pattern)] == []


# They start train.py or run_eval.py with what the original's name means.
OTHER_NAMES = {"train_mvtec.py", "train_visa.py", *ORIGINAL_NAMES}
HEAVY = {"torch", "transformers", "timm", "gradio", "deepspeed", "cv2", "peft", "matplotlib"}


@pytest.mark.parametrize(
    "file", [file for file in entry_points() if file.name not in OTHER_NAMES], ids=lambda file: file.name
)
def test_entry_point_has_a_main_that_takes_arguments_and_imports_nothing_heavy_at_the_top(file: Path) -> None:
    """`--help` answers at once."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    main = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert [argument.arg for argument in main.args.args] == ["argv"]
    assert len(main.args.defaults) == 1, "argv has no default"
    top = "\n".join(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert HEAVY.isdisjoint(found.module.split(".")[0] for found in imports_of(top, file.name))
