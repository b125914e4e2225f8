"""Answers in bfloat16 against those in float32 by transformers: ``python benchmarks/precision.py --questions 200``.

Questions in held-out wordings about drawn findings, answered greedily, before the check corrects anything.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))

from answers import content
from speed import generated_photo

from anomalygpt.config.load import load_config
from anomalygpt.datasets.findings import LANGUAGES, answer_text, language_of
from anomalygpt.datasets.findings_dialogue import draw_findings, draw_question, kinds
from anomalygpt.inference.answer_check import check_answer
from anomalygpt.inference.language_models import PromptedModel
from anomalygpt.inference.predictor import Predictor


def answers(settings: Sequence[str], questions: int) -> list[tuple[str, bool, bool]]:
    """The language model's own answers: (text, true by the check, content of the findings' own sentence)."""
    predictor = Predictor.from_config(load_config("compact", ["llm.generation.temperature=0", *settings]), "cpu")
    image, found = predictor.inspect(generated_photo(0)), []
    for number in range(questions):
        rng = np.random.default_rng(number)
        findings, language = draw_findings(rng), LANGUAGES[number % len(LANGUAGES)]
        kind = kinds(language)[int(rng.integers(len(kinds(language))))]
        question, claim = draw_question(kind, findings, language, rng, "held_out")
        vars(image)["findings"] = findings  # as if the photo showed them
        *_, text = PromptedModel(predictor.model, predictor.generation).texts(image, question, ())
        reference = answer_text(kind, findings, language_of(question), **claim)
        found.append((text, not check_answer(text, question, findings), content(text) == content(reference)))
    return found


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Whether bfloat16 changes the compact model's answers, on a CPU.")
    parser.add_argument("--questions", type=int, default=200)
    count = parser.parse_args().questions
    sides = {"bfloat16": answers([], count), "float32, transformers": answers(["llm.precision=full"], count)}
    print("| | true by the check | same content as the findings' sentence |\n|---|--:|--:|")
    for name, found in sides.items():
        print(f"| {name} | {sum(row[1] for row in found)} of {count} | {sum(row[2] for row in found)} of {count} |")
    own, theirs = sides.values()
    print(f"\nEqual answers: {sum(a[0] == b[0] for a, b in zip(own, theirs, strict=True))} of {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
