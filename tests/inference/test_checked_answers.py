"""The check while an answer is written: what is released, corrected, or replaced by the findings' own sentence."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from anomalygpt.datasets.findings import answer_text
from anomalygpt.inference.answer_check import Answer, check_answer, stream_checked
from tests.fake_predictor import TOP_LEFT, result_with

IMAGE = result_with(TOP_LEFT, "nut")  # defective at the top left
TRUE, FALSE = "Yes, there is a defect at the top left.", "No, the part is fine."


class Script:
    """Writes fixed answers word by word, one per call; keeps the openings that it was given."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.openings: list[str] = []

    def texts(self, image, question, history, opening="") -> Iterator[str]:  # type: ignore[no-untyped-def]
        self.openings.append(opening)
        words = (opening + self.answers.pop(0)).split(" ")
        yield from (" ".join(words[: n + 1]) for n in range(len(words)))


def streamed(script: Script, question: str = "Is it damaged?", image=IMAGE) -> tuple[list[str], Answer]:  # type: ignore[no-untyped-def]
    pieces, answers = [], []

    def run() -> Iterator[str]:
        answers.append((yield from stream_checked(script, image, question)))

    pieces = list(run())
    return pieces, answers[0]


def test_true_sentences_are_released_one_by_one() -> None:
    pieces, answer = streamed(Script(f"{TRUE} It covers 1.0% of the image."))
    assert pieces == [TRUE, " It covers 1.0% of the image."]
    assert (answer.text, answer.source, answer.contradictions) == ("".join(pieces), "model", ())


def test_answer_ends_before_its_first_contradiction() -> None:
    pieces, answer = streamed(Script(f"{TRUE} It covers 40% of the image."))
    assert (pieces, answer.text, answer.source) == ([TRUE], TRUE, "corrected")
    assert [fault.kind for fault in answer.contradictions] == ["size"]


def test_number_is_not_cut_at_its_decimal_point() -> None:
    class Letters(Script):
        def texts(self, *asked) -> Iterator[str]:  # type: ignore[no-untyped-def]
            *_, text = super().texts(*asked)
            yield from (text[: n + 1] for n in range(len(text)))

    wrong, right = (
        f"{TRUE} It covers 1.9% of the image.",
        f"{TRUE} It covers 1.0% of the image. There is 1. That is all.",
    )
    assert streamed(Letters(wrong))[1].text == TRUE
    pieces, answer = streamed(Letters(right))
    assert pieces == [TRUE, " It covers 1.0% of the image.", " There is 1.", " That is all."]
    assert answer.source == "model"


def test_contradicting_answer_is_written_again_from_the_findings_opening() -> None:
    script = Script(FALSE, ".")
    pieces, answer = streamed(script)
    assert script.openings == ["", "There is a defect at the top left"]
    assert (pieces, answer.source) == (["There is a defect at the top left."], "corrected")
    assert {fault.kind for fault in answer.contradictions} == {"verdict"}


@pytest.mark.parametrize(("question", "language"), [("Is it damaged?", "en"), ("它坏了吗？", "zh")])
@pytest.mark.parametrize("probability", [0.97, 0.04])
def test_findings_own_sentence_replaces_what_can_not_be_corrected(question: str, language, probability: float) -> None:
    image = IMAGE if probability > 0.5 else replace(IMAGE, score_probability=probability, regions=())
    wrong = "There are 7 defects at the bottom." if language == "en" else "下方有7处缺陷。"
    pieces, answer = streamed(Script(wrong, f", but {wrong}"), question, image)
    kind = "where" if probability > 0.5 else "describe"  # there the place is wrong, here the verdict
    assert pieces[-1] == answer.text == answer_text(kind, image.findings, language)
    assert answer.source == "findings"
    assert check_answer(answer.text, question, image.findings) == ()


@pytest.mark.parametrize("answer", ["", "图中有一处缺陷。", "Yes, there is a defect at", "there is " * 30])
def test_empty_foreign_cut_off_and_repeated_answers_are_not_shown(answer: str) -> None:
    pieces, found = streamed(Script(answer, "."))
    assert (pieces, found.source) == (["There is a defect at the top left."], "corrected")


@pytest.mark.parametrize(
    ("question", "own", "whole"),
    [
        ("Where is it and how big?", "The defect is at the top left.", "covers 1.0% of the image."),
        ("它在哪里，有多大？", "缺陷位于左上角。", "占图像的1.0%"),
        ("How big is it, and how sure are you?", "It covers 1.0% of the image.", "the probability of a defect is"),
    ],
)
def test_what_a_question_asks_for_and_the_answer_leaves_out_is_added(question: str, own: str, whole: str) -> None:
    pieces, answer = streamed(Script(own), question)
    assert (pieces[0], answer.text, answer.source) == (own, "".join(pieces), "corrected")
    assert whole in answer.text.removeprefix(own)


@pytest.mark.parametrize(
    ("question", "own"),
    [
        ("Where is it?", "The defect is at the top left."),
        ("How likely is a mistake?", "The probability of a defect is 97%."),
        ("Where was it made?", "I can only answer questions about defects in this image."),
        ("How many defects are there?", "There is a defect at the top left."),
    ],
)
def test_complete_answer_is_left_alone(question: str, own: str) -> None:
    image = replace(IMAGE, score_probability=0.97)
    assert streamed(Script(own), question, image)[1] == Answer(own, "model")
