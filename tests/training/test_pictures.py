"""Sheets of photos, maps and answers, and the curves of a run."""

import json
from pathlib import Path

import torch
from PIL import Image

from anomalygpt.model.encoder import ImageSpec
from anomalygpt.training.metrics_log import FILE
from anomalygpt.training.pictures import CAPTION_LINES, LINE, caption, draw_curves, sample_sheet

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


def test_a_caption_is_cut_to_lines_and_starts_no_formula():
    text = caption("What costs $5?", "word " * 200)
    lines = text.splitlines()
    assert lines[0] == r"Q: What costs \$5?"
    assert len(lines) == 1 + CAPTION_LINES
    assert lines[-1].endswith(" …")
    assert max(map(len, lines)) <= LINE + 2
    assert caption("\x07", "") == "Q: (nothing)\nA: (nothing)"


def test_curves_are_drawn_from_what_a_run_has_logged_and_from_nothing(tmp_path):
    draw_curves(tmp_path)
    lines = [{"kind": "train", "step": step, "total": 1 / step, "lr": 1e-3} for step in range(1, 101)]
    lines.append({"kind": "validation", "step": 100, "total": 0.5, "verdict_accuracy": 0.75})
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = (tmp_path / "curves.png").stat().st_size
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > before
