"""What is measured of maps and answers that are known; alone and shared, stopped and gone on with."""

import dataclasses
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from anomalygpt import distributed
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.mvtec import index_mvtec
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError
from anomalygpt.evaluation import session as session_module
from anomalygpt.evaluation.protocol import Cell, Plan
from anomalygpt.evaluation.sharing import Share

ZERO = Cell(0, 0, "bottle")


def test_a_map_of_the_defect_is_perfect(session, fake_predictor):
    metrics = session(fake_predictor()).measure(ZERO).metrics
    assert metrics.pop("false_alarm_rate") == 0
    assert metrics == pytest.approx(dict.fromkeys(metrics, 1.0))


def test_an_inverted_map_is_as_wrong_as_can_be(session, fake_predictor, tmp_path):
    def inverted(dark):
        return (1 - dark) * (1 - dark.max())  # the darker the darkest pixel, the lower the photo's score

    assert session(fake_predictor(inverted)).measure(ZERO).metrics["image_auroc"] == 0
    pixels = session(fake_predictor(lambda dark: 1 - dark), folder=tmp_path / "other").measure(ZERO).metrics
    assert (pixels["pixel_auroc"], pixels["aupro"]) == (pytest.approx(0), pytest.approx(0))


def test_the_references_of_the_round_reach_the_predictor(session, fake_predictor, tree):
    predictor = fake_predictor()
    found = session(predictor, plan=Plan((2,), (1,))).measure(Cell(2, 1, "bottle"))
    assert found.references == ("bottle/train/good/004.png", "bottle/train/good/005.png")
    expected = [Image.open(tree / "bottle" / "train" / "good" / f"00{n}.png") for n in (4, 5)]
    assert all(np.array_equal(a, b) for a, b in zip(predictor.references, expected, strict=True))


def test_zero_shot_takes_earlier_references_away(session, fake_predictor):
    predictor = fake_predictor()
    predictor.set_references(["of an earlier class"])
    session(predictor).measure(ZERO)
    assert predictor.references == []


def test_the_question_is_the_one_that_users_are_given(session, fake_predictor):
    predictor = fake_predictor()
    session(predictor).measure(ZERO)
    assert set(predictor.questions) == {detection_question("bottle", with_description=False)}


def test_a_silent_answer_is_wrong_but_leaves_the_verdict_to_the_score(session, fake_predictor):
    found = session(fake_predictor(words=lambda is_dark: "Nothing comes to mind.")).measure(ZERO)
    assert (found.metrics["answer_accuracy"], found.no_verdict, found.metrics["verdict_accuracy"]) == (0, 4, 1)
    assert found.metrics["position_accuracy"] is None, "nobody said yes"


@pytest.mark.parametrize(
    ("place", "strict", "cell"),
    [("at the center", 1, 1), ("at the top left", 0, 1), ("at the bottom", 0, 0), ("somewhere", 0, 0)],
)
def test_a_position_is_right_by_the_defects_centre_or_by_any_of_it(session, fake_predictor, place, strict, cell):
    # The square's centre lies in the middle ninth; pixels 8 to 10 of 32 reach into the top left one.
    found = session(fake_predictor(words=lambda is_dark: f"Yes, {place}." if is_dark else "No.")).measure(ZERO)
    assert found.placed == 2
    assert (found.metrics["position_accuracy"], found.metrics["position_cell_accuracy"]) == (strict, cell)


def test_without_chat_answers_are_not_counted(session, fake_predictor):
    found = session(fake_predictor(words=lambda is_dark: ""), settings={"chat": False}).measure(ZERO)
    assert found.metrics["answer_accuracy"] is None and found.metrics["position_accuracy"] is None
    assert (found.metrics["image_auroc"], found.metrics["verdict_accuracy"]) == (1, 1)


def test_a_defect_without_a_mask_counts_for_the_image_only(session, fake_predictor, tree):
    records = [
        dataclasses.replace(record, mask=None) if record.image.match("hole/001.png") else record
        for record in index_mvtec(tree)
    ]
    found = session(fake_predictor(), records=records).measure(ZERO)
    assert (len(found.rows), found.masked_photos, found.regions) == (4, 3, 1)
    assert found.metrics["pixel_auroc"] == pytest.approx(1)


def test_a_class_without_test_photos_is_told(session, fake_predictor):
    with pytest.raises(UserError, match="screw: no test photos"):
        session(fake_predictor()).measure(Cell(0, 0, "screw"))


def noisy(dark):
    """A map that is neither perfect nor useless."""
    return (dark + 0.7 * (997 * dark).frac()) / 2


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_add_up_to_what_one_process_measures(session, fake_predictor, tmp_path, monkeypatch, count):
    alone = session(fake_predictor(noisy)).measure(ZERO)
    together = Barrier(count, timeout=60)
    monkeypatch.setattr(distributed, "barrier", together.wait)
    shares = [
        session(fake_predictor(noisy), folder=tmp_path / "shared", share=Share(number, count))
        for number in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        both, *others = pool.map(lambda one: one.measure(ZERO), shares)
    assert others == [None] * (count - 1)
    assert_equal(both, alone)


def assert_equal(one, other):
    assert (one.rows, one.metrics, one.bounds) == (other.rows, other.metrics, other.bounds)
    assert one.examples == other.examples
    for name, curve in one.curves.items():
        assert np.array_equal(curve.x, other.curves[name].x) and np.array_equal(curve.y, other.curves[name].y)


class Killed(BaseException):
    """What stops a process without a chance to tidy up."""


def stop_after(count):
    """An ``on_photo`` that ends the process."""
    done = []

    def call():
        done.append(1)
        if len(done) == count:
            raise Killed

    return call


def test_a_run_that_was_stopped_goes_on_with_the_photos_that_are_left(session, fake_predictor, tmp_path):
    alone = session(fake_predictor(noisy)).measure(ZERO)
    folder = tmp_path / "stopped"
    for _ in range(2):
        with pytest.raises(Killed):
            session(fake_predictor(noisy), folder=folder, on_photo=stop_after(1)).measure(ZERO)
    goes_on = fake_predictor(noisy)
    last = session(goes_on, folder=folder)
    assert last.left(ZERO) == 2
    assert_equal(last.measure(ZERO), alone)
    assert len(goes_on.questions) == 2
    assert session(None, folder=folder).left(ZERO) == 0
    assert_equal(session(None, folder=folder).measure(ZERO), alone)


def test_photos_are_saved_while_they_are_measured(session, fake_predictor, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    run = session(fake_predictor(), folder=folder, on_photo=stop_after(3), save_every=0)
    written = []
    write = run.state.write_part

    def kill_spares_nothing_later(cell, number, part):
        if len(written) < 2:  # the last words of a process that is killed are never written
            written.append(len(part.rows))
            write(cell, number, part)

    monkeypatch.setattr(run.state, "write_part", kill_spares_nothing_later)
    with pytest.raises(Killed):
        run.measure(ZERO)
    assert written == [1, 2]
    assert session(fake_predictor(), folder=folder).left(ZERO) == 2


def test_a_finished_class_of_other_photos_is_refused(session, fake_predictor, tree):
    session(fake_predictor()).measure(ZERO)
    fewer = [record for record in index_mvtec(tree) if not record.image.match("hole/001.png")]
    with pytest.raises(UserError, match=r"other photos \(bottle/test/hole/001.png\); name another --out"):
        session(fake_predictor(), records=fewer).measure(ZERO)


def test_a_photo_that_fails_in_the_middle_is_measured_anew(session, fake_predictor, tmp_path, monkeypatch):
    alone = session(fake_predictor(noisy)).measure(ZERO)
    folder = tmp_path / "failed"
    truth, calls = session_module.truth_about, []

    def fails_once(*given):
        calls.append(given)
        if len(calls) == 2:
            raise DatasetError("the mask can't be read")
        return truth(*given)

    monkeypatch.setattr(session_module, "truth_about", fails_once)
    with pytest.raises(DatasetError):
        session(fake_predictor(noisy), folder=folder).measure(ZERO)
    again = session(fake_predictor(noisy), folder=folder)
    assert again.left(ZERO) == 3
    assert_equal(again.measure(ZERO), alone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_photo_and_a_second_one_does_not(session, fake_predictor, tmp_path, monkeypatch, number):
    alone = session(fake_predictor(noisy)).measure(ZERO)
    truth, calls = session_module.truth_about, []

    def interrupted(*given):
        calls.append(given)
        for _ in range({2: 1, 3: 2}.get(len(calls), 0)):
            os.kill(os.getpid(), number)
        return truth(*given)

    monkeypatch.setattr(session_module, "truth_about", interrupted)
    for left in (2, 2):  # after the second photo; then at once, with the third one not counted
        stopped = session(fake_predictor(noisy), folder=tmp_path / "stopped")
        with pytest.raises(KeyboardInterrupt):
            stopped.measure(ZERO)
        assert stopped.left(ZERO) == left
    assert_equal(session(fake_predictor(noisy), folder=tmp_path / "stopped").measure(ZERO), alone)


def test_photos_that_two_runs_counted_are_not_reported(session, fake_predictor, tmp_path):
    folder = tmp_path / "twice"
    with pytest.raises(Killed):
        session(fake_predictor(noisy), folder=folder, on_photo=stop_after(2)).measure(ZERO)
    [part] = folder.rglob("*.part0")
    part.with_name(part.name.replace("part0", "part1")).write_bytes(part.read_bytes())
    with pytest.raises(UserError, match="counted twice"):
        session(fake_predictor(noisy), folder=folder).measure(ZERO)
