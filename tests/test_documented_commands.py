"""The commands in the READMEs and in docs/: each can be parsed, and what needs nothing but the compact model runs.

Bash itself reads a command, in a folder of links to the repository, where ``python``, ``make`` and the launchers only
record what they were called with. Each call is then checked with the program's own parser.
"""

import argparse
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.distributed.run import parse_args as torchrun_arguments

from anomalygpt.config.load import load_config
from tests.shared_data import ROOT

CODE = ROOT / "code"
PAGES = [
    *(path for name in ("README.md", "CONTRIBUTING.md") if (path := ROOT / name).is_file()),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("data", "pretrained_ckpt", "images", "benchmarks")),
]
FENCED = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# With arguments, else it is a program's name; with … it is the beginning of a command.
INLINE = re.compile(r"`((?:cd code && )?(?:(?:python|bash|torchrun|deepspeed) [^\s`]+|make) [^`…]+)`")
RECORDED = ("python", "make", "torchrun", "deepspeed", "srun", "pip", "pre-commit")
WRITING = ("--out", "--save-references", ">")

# Words of a command -> what it needs beyond the compact model; such a command is parsed, but not run.
NEEDS = {
    "mvtec_anomaly_detection": "MVTec-AD in data/",
    "MMAD": "MMAD in data/",
    "llm.endpoint": "a server: tests/inference/test_chat_models.py",
    "mvtec_layout": "the photos of benchmarks/README.md in data/",
    "my_parts": "photos of one's own",
    "--watch": "a camera: tests/test_predict_outputs.py",
    "--engine ray": "Ray: tests/test_predict_ray.py",
    "--data ROOT": "any data set",
    "python train.py --config train_mvtec  ": "MVTec-AD, Vicuna and a GPU",
    "train_compact_1_map": "MVTec-AD, and days",
    "--config train_backbone": "weights that are not fetched: tests/model/test_templates.py",
    "--config winclip": "CLIP's weights: tests/model/test_encoders.py",
    "train_compact_3_words": "an hour",
    "check_weights.py": "the paper's weights, else it ends with 1",
    "prepare_vicuna.py": "LLaMA: tests/weights/test_vicuna.py",
    "deepspeed": "a GPU",
    "torchrun": "several GPUs",
    "srun": "a Slurm cluster",
    "scripts/train_mvtec.sh": "the deepspeed launcher, and a GPU",
    "--root FOLDER": "a network",
    "make": "a network, or minutes",
    "benchmarks/speed.py": "a quiet machine",
    "benchmarks/serve.py": "a quiet machine",
    "serve.py": "nothing, but it does not end: tests/test_serve.py",
    "make_examples.py": "nothing, but it writes into the repository: tests/test_examples.py",
    "python web_demo.py": "a browser: tests/test_web_demo.py",
    "tests.browser": "a browser: tests/test_web_demo.py",
}
# Photos that the pages speak of -> the examples that stand for them.
PLACEHOLDERS = {
    "part.png": "pcb/defect.jpg",
    "good_1.png": "pcb/good_1.jpg",
    "good_2.png": "pcb/good_2.jpg",
    "good_3.png": "pcb/good_1.jpg",
    "new/1.png": "pcb/defect.jpg",
    "new/2.png": "pcb/good_1.jpg",
    "new/3.png": "pcb/good_2.jpg",
    "tomorrow/1.png": "pcb/good_2.jpg",
    "photos/1.png": "washer/good_1.jpg",
}


class Snippet(NamedTuple):
    """A block of commands, or one inside a sentence."""

    page: str
    line: int
    text: str

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]

    @property
    def runnable(self) -> str:
        """Those of its commands that need nothing."""
        own = [line for line in self.commands if re.match(r"(cd code && )?(python|bash) ", line)]
        return "\n".join(line for line in own if not any(words in line for words in NEEDS))


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in sorted([*FENCED.finditer(text), *INLINE.finditer(text)], key=lambda one: one.start()):
            yield Snippet(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, found[1])


SNIPPETS = list(snippets())
COMMANDS = [(snippet, command) for snippet in SNIPPETS for command in snippet.commands]


class Parsed(Exception):
    """Ends a program once it has parsed its arguments."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of ``code/`` made of links, with the photos that the pages name."""
    for source, target in ((ROOT, tmp_path), (CODE, tmp_path / "code")):
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            if path != CODE:
                (target / path.name).symlink_to(path)
    for name, example in PLACEHOLDERS.items():
        path = tmp_path / "code" / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "images" / "examples" / example, path)
    return tmp_path / "code"


def in_bash(script: str, folder: Path, programs: Path) -> "subprocess.CompletedProcess[str]":
    """Runs commands in bash, which finds its programs in a folder first."""
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    start = folder.parent if script.startswith("cd code") else folder
    return subprocess.run(["bash", "-ec", script], cwd=start, env=environment, capture_output=True, text=True)


def paths_read(snippet: Snippet, command: str) -> list[str]:
    """The files and patterns that a command reads, except what NEEDS names and what the snippet makes itself."""
    if any(words in command for words in NEEDS):
        return []
    others = [line for line in snippet.commands if line != command]
    made = {word for line in others for word in shlex.split(line, comments=True)}
    words = shlex.split(command, comments=True)
    read = [word for before, word in zip(["", *words], words, strict=False) if before not in WRITING]
    return [word for word in read if re.search(r"\.\w+$|/", word) and "=" not in word and word not in made]


def calls_of(command: str, folder: Path, tmp_path: Path) -> list[list[str]]:
    """The calls of programs that a command makes."""
    programs, log = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    log.touch()
    recorder = f"#!{sys.executable} -S\nimport json, os, sys\n"
    recorder += f"print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=open({str(log)!r}, 'a'))\n"
    for name in RECORDED:
        (programs / name).write_text(recorder)
        (programs / name).chmod(0o755)
    done = in_bash(command, folder, programs)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def parse(script: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What a program's own parser makes of its arguments; an argument that it refuses ends the test."""

    def stopping(method: Any) -> Any:
        def parse_and_stop(parser: argparse.ArgumentParser, *given: Any) -> None:
            raise Parsed(method(parser, *given))

        return parse_and_stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(Parsed) as parsed:
        runpy.run_path(str(script), run_name="__main__")
    return parsed.value.args[0]


@pytest.mark.parametrize(("snippet", "command"), COMMANDS, ids=[f"{s.page}:{s.line} {c[:60]}" for s, c in COMMANDS])
def test_command_can_be_parsed(
    snippet: Snippet, command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [word for word in paths_read(snippet, command) if not any(folder.glob(word))] == []
    calls = calls_of(command, folder, tmp_path)
    assert calls or command.startswith("export ")
    for program, *arguments in calls:
        if program == "torchrun":
            parsed = torchrun_arguments(arguments)
            arguments = [parsed.training_script, *parsed.training_script_args]
        elif program == "deepspeed":
            from deepspeed.launcher.runner import parse_args

            parsed = parse_args(arguments)
            arguments = [parsed.user_script, *parsed.user_args]
        elif program == "srun":
            parsed = torchrun_arguments(arguments[arguments.index("torchrun") + 1 :])
            arguments = [parsed.training_script, *parsed.training_script_args]
        if program in ("pip", "pre-commit"):
            continue
        if program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            continue
        if arguments[0] == "-m":
            arguments[:2] = [arguments[1].replace(".", "/") + ".py"]
        script = next((path for root in (CODE, ROOT) if (path := root / arguments[0]).is_file()), None)
        assert script is not None, f"{snippet.page}:{snippet.line}: no file {arguments[0]}"
        if "argparse" not in script.read_text(encoding="utf-8"):
            continue
        options = vars(parse(script, arguments[1:], monkeypatch))
        if "config" in options:
            monkeypatch.chdir(folder)
            load_config(options["config"] or "compact", [*options.get("overrides", []), *(options.get("set") or [])])


# With references it takes more than 20 s on two busy cores.
RUN = [
    pytest.param(each, id=f"{each.page}:{each.line}", marks=[pytest.mark.slow] * ("--reference" in each.text))
    for each in SNIPPETS
    if each.runnable
]


@pytest.mark.weights
@pytest.mark.parametrize("snippet", RUN)
def test_command_that_needs_nothing_runs(snippet: Snippet, folder: Path, compact_overrides: list[str]) -> None:
    if compact_overrides:
        pytest.skip("needs pretrained_ckpt/anomalygpt_compact")
    done = in_bash(snippet.runnable, folder, Path(sys.executable).parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout or any(f" {option} " in snippet.runnable for option in WRITING)
