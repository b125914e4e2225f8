"""The Chinese pages have their English pages' structure and commands, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.shared_data import ROOT

PAIRS = {
    "README.zh.md": "README.md",
    "docs/zh/quickstart.md": "docs/quickstart.md",
    "docs/zh/own_part.md": "docs/own_part.md",
    "docs/zh/weights.md": "pretrained_ckpt/README.md",
    "docs/zh/training.md": "docs/training.md",
}
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
both = pytest.mark.parametrize(("chinese", "english"), PAIRS.items(), ids=PAIRS)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def heading_levels(page: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", FENCED.sub("", read(page)), re.MULTILINE)]


def commands(page: str) -> list[list[str]]:
    """The lines of each ``bash`` block, without comments."""
    blocks = [body for language, body in FENCED.findall(read(page)) if language == "bash"]
    lines = [[re.sub(r"(^|\s+)#.*", "", line).strip() for line in block.splitlines()] for block in blocks]
    return [[line for line in block if line] for block in lines]


@both
def test_headings_are_the_same(chinese: str, english: str) -> None:
    assert heading_levels(english)
    assert heading_levels(chinese) == heading_levels(english)


@both
def test_commands_are_the_same(chinese: str, english: str) -> None:
    assert commands(english)
    assert commands(chinese) == commands(english)


@both
def test_links_exist(chinese: str, english: str) -> None:
    text = FENCED.sub("", read(chinese))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    relative = [target.partition("#")[0] for target in targets if not re.match(r"\w+:", target)]
    assert [link for link in relative if not Path(ROOT / chinese).parent.joinpath(link).exists()] == []
