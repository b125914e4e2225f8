"""What photos that were called good or bad, and a stream without labels, do to the verdict."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anomalygpt.errors import UserError
from anomalygpt.inference.calibration import MOST_UNLABELLED, calibrate
from anomalygpt.inference.predictor import Predictor

MAPS = torch.full((4, 1, 8, 8), 0.3)
HELD_OUT = [0.3, 0.32, 0.29, 0.31]


def threshold(observed: dict[float, bool | None]) -> float:
    return calibrate(HELD_OUT, MAPS, 0.1, references=4, observed=observed).score_threshold


def test_good_photos_move_the_threshold_towards_their_own_quantile() -> None:
    scores = np.exp(np.random.default_rng(0).normal(np.log(0.5), 0.1, 300))
    few, many = (threshold(dict.fromkeys(scores[:count].tolist(), True)) for count in (3, 300))
    assert threshold({}) < few
    assert (scores > many).mean() == pytest.approx(0.1, abs=0.03)


def test_a_bad_photo_lowers_the_threshold_to_its_score_but_not_below_good_photos() -> None:
    before = threshold({})
    assert threshold({0.97 * before: False}) == pytest.approx(0.97 * before)
    assert threshold({2 * before: False}) == before
    assert threshold({0.1: False}) > max(HELD_OUT) * 0.95


@pytest.mark.parametrize("defective", [0.0, 0.3])
def test_a_stream_without_labels_gives_the_promised_rate_in_spite_of_defects(defective: float) -> None:
    """The stream's good photos score a quarter higher than the references said."""
    rng = np.random.default_rng(1)
    good = np.exp(rng.normal(np.log(0.38), 0.1, round(100 * (1 - defective))))
    bad = np.exp(rng.normal(np.log(0.65), 0.15, round(100 * defective)))
    assert (good > threshold({})).mean() > 0.25
    assert (good > threshold(dict.fromkeys([*good.tolist(), *bad.tolist()]))).mean() == pytest.approx(0.1, abs=0.06)


def test_feedback_counts_is_kept_in_the_file_and_is_withdrawn(predictor: Predictor, photo, tmp_path: Path) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(3)])
    before = predictor.inspect(photo(seed=9))
    for seed in (7, 8):
        predictor.feedback(predictor.inspect(photo(seed=seed)), good=True)
    predictor.feedback(before, good=False)
    after = predictor.inspect(photo(seed=9))
    assert after.score == before.score
    assert after.probability != before.probability
    predictor.save_references(tmp_path / "part.safetensors")
    predictor.forget_feedback()
    assert predictor.inspect(photo(seed=9)).probability == before.probability
    predictor.set_references((), tmp_path / "part.safetensors")
    assert predictor.inspect(photo(seed=9)).probability == pytest.approx(after.probability)
    for seed in (7, 8, 9):
        predictor.feedback(predictor.inspect(photo(seed=seed)), good=None)
    assert predictor.inspect(photo(seed=9)).probability == pytest.approx(before.probability)
    predictor.set_references([])
    with pytest.raises(UserError, match="only where there are references"):
        predictor.feedback(before, good=True)


def test_photos_adapt_the_calibration_only_where_asked(predictor: Predictor, photo) -> None:
    predictor.set_references([photo(seed=seed) for seed in range(3)])
    first, again = predictor.inspect(photo(seed=5)), predictor.inspect(photo(seed=5))
    assert again.probability == first.probability
    predictor.adapts = True
    predictor.inspect(photo(seed=5))
    assert predictor.inspect(photo(seed=5)).probability != first.probability
    observed = predictor.references.observed_as("object")
    observed.update(dict.fromkeys(np.linspace(1, 2, 2 * MOST_UNLABELLED).tolist()))
    predictor.inspect(photo(seed=6))
    assert len(observed) == MOST_UNLABELLED
    predictor.adapts = False
