"""The notebook and the Python lines of the quick start do what they show."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from anomalygpt.inference import library
from tests.shared_data import ROOT

DOCS = ROOT / "docs"
EXAMPLES = ROOT / "images" / "examples" / "pcb"


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each code cell prints and gives, without the pictures."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.get("text") or output["data"]["text/plain"] for output in outputs if output.get("name") != "stderr"]


@pytest.mark.weights
def test_notebook_gives_what_it_shows() -> None:
    shown = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    run = nbformat.read(DOCS / "quickstart.ipynb", as_version=4)
    NotebookClient(run, timeout=120, resources={"metadata": {"path": DOCS}}).execute()
    assert texts(run) == texts(shown)
    assert any("image/png" in output.get("data", ()) for cell in shown.cells for output in cell.get("outputs", ()))


@pytest.mark.weights
@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "docs/quickstart.md", "docs/zh/quickstart.md"])
def test_python_lines_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compact_predictor) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    blocks = [block for block in blocks if "AnomalyGPT" in block]
    assert blocks
    monkeypatch.setattr(library.Predictor, "from_config", lambda *_, **__: compact_predictor.without_references())
    for block in blocks:
        monkeypatch.chdir(tmp_path)
        for name in set(re.findall(r"[\w/]+\.(?:png|jpg)", block)):
            photo = EXAMPLES / ("good_1.jpg" if "good" in name else "defect.jpg")
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(photo.read_bytes())
        exec(compile(block, page, "exec"), {})
