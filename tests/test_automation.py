"""Continuous integration and commit hooks do what ``make lint`` and ``make test`` do."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CI_RUN, WORKFLOW, HOOKS = ROOT / ".ci/run", ROOT / ".github/workflows/ci.yml", ROOT / ".pre-commit-config.yaml"
CLOSING_LINE = "=== 3 passed in 0.01s ==="


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def make_rules() -> dict[str, list[str]]:
    """Target -> prerequisites, as the Makefile states them."""
    rules = re.findall(r"^([\w-]+):(?!=)(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return {target: prerequisites.split() for target, prerequisites in rules}


def made_by(command: str) -> list[str]:
    """The targets that a command line gives to make."""
    words = command.split()
    if not words or words[0] != "make":
        return []
    return [word for word in words[1:] if not word.startswith("-") and "=" not in word]


def test_workflow_and_ci_run_make_existing_targets_lint_and_test_among_them() -> None:
    (job,) = read_yaml(WORKFLOW)["jobs"].values()
    of_workflow = [target for step in job["steps"] for target in made_by(step.get("run", ""))]
    of_ci = made_by(re.search(r"^tests=\((.*)\)$", CI_RUN.read_text(encoding="utf-8"), re.MULTILINE).group(1))
    for called in (of_workflow, of_ci):
        assert {"lint", "test"} <= set(called) <= set(make_rules())
        assert called.index("lint") < called.index("test")


def test_hooks_run_each_part_of_make_lint_without_fetching_anything() -> None:
    (repository,) = read_yaml(HOOKS)["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    parts = [target for hook in repository["hooks"] for target in made_by(hook["entry"])]
    assert parts == make_rules()["lint"]


@pytest.mark.parametrize(("lint", "test"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_ci_run_fails_with_either_and_prints_the_tests_last_line_last(tmp_path: Path, lint: int, test: int) -> None:
    script, tools = tmp_path / ".ci" / "run", tmp_path / "tools"
    script.parent.mkdir()
    script.write_bytes(CI_RUN.read_bytes())
    rules = f"lint:\n\t@echo linted; exit {lint}\ntest:\n\t@echo '{CLOSING_LINE}'; exit {test}\n"
    (tmp_path / "Makefile").write_text(rules, encoding="utf-8")
    tools.mkdir()
    for name in ("chromium", "python3"):  # as if all were installed, so that nothing is
        (tools / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    # A make around these tests would tell this one to print the folders that it enters.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    environment["PATH"] = f"{tools}:{os.environ['PATH']}"
    run = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.stdout.splitlines() == ["linted", CLOSING_LINE]
    assert (run.returncode != 0) == bool(lint or test)
