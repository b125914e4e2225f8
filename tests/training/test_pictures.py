"""Sheets of photos, maps and answers."""

from pathlib import Path

import torch
from PIL import Image

from anomalygpt.model.encoder import ImageSpec
from anomalygpt.training.pictures import CAPTION_LINES, LINE, caption, sample_sheet

SPEC = ImageSpec(size=28, mean=(0.5,) * 3, std=(0.5,) * 3, grid=2, tap_width=4, taps=(0,), embed_width=4)


def draw(path: Path, dialogues: list) -> Path:
    images = torch.zeros(2, 3, 28, 28)
    maps = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sample_sheet(images, (maps > 0.5).float(), maps.bfloat16(), dialogues, SPEC, path)
    return path


def test_a_sheet_has_a_column_for_answers_only_with_a_language_model(tmp_path):
    maps = Image.open(draw(tmp_path / "maps.png", [(None, None)] * 2))
    dialogues = [("Is there a $5 defect?", "No."), ("有异常吗？", "没有。\x00")]
    answers = Image.open(draw(tmp_path / "answers.png", dialogues))
    assert answers.width > 1.2 * maps.width
    assert answers.height == maps.height


def test_a_caption_is_cut_to_lines():
    text = caption("What costs $5?", "word " * 200)
    lines = text.splitlines()
    assert lines[0] == "Q: What costs $5?"
    assert len(lines) == 1 + CAPTION_LINES
    assert lines[-1].endswith(" …")
    assert max(map(len, lines)) <= LINE + 2
    assert caption("\x07", "") == "Q: (nothing)\nA: (nothing)"
