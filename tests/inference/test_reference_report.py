"""What a set of references is worth."""

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.config.schema import InferenceConfig
from anomalygpt.inference.calibration import ReferenceReport, odd_ones

ALIKE = (0.20, 0.22, 0.21, 0.19)
ABOUT = InferenceConfig(false_alarm_rate=0.1, other_part_above=0.5)


def tokens(*apart: float) -> torch.Tensor:
    """Unit vectors; each lies so many radians from the first, in a direction of its own."""
    found = torch.zeros(len(apart), 8)
    for row, angle in enumerate(apart):
        found[row, 0], found[row, row + 1] = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    return F.normalize(found, dim=-1)


def judged(apart: tuple[float, ...] = (0.3, 0.3, 0.3, 0.3), scores: tuple[float, ...] = ALIKE) -> ReferenceReport:
    return ReferenceReport.of(tokens(*apart), scores, [f"{index}.png" for index in range(len(apart))], ABOUT, None)


def test_good_set_accuses_nobody() -> None:
    found = judged()
    assert (found.names[0], found.foreign, found.odd) == ("0.png", (), ())
    assert len(found.lines()) == 1


def test_odd_and_foreign_references_are_named() -> None:
    odd = judged(scores=(0.2, 0.2, 0.5, 0.2))
    assert (odd.odd, odd.foreign) == ((2,), ())
    assert odd.lines()[-1].startswith("2.png is unlike the others")
    foreign = judged(apart=(0.3, 1.4, 0.3, 0.3), scores=(0.2, 0.6, 0.2, 0.2))
    assert (foreign.odd, foreign.foreign) == ((), (1,)), "named once, for the stronger reason"


def test_nobody_knows_which_of_two_is_the_odd_one() -> None:
    assert odd_ones([0.2, 0.9]) == []
    assert odd_ones([0.2, 0.2, 0.5], usual=-0.5) == [], "other parts have such scores, too"
    pair = judged(apart=(0.0, 1.5), scores=(0.2, 0.9))
    assert (pair.foreign, pair.odd) == ((), ())


@pytest.mark.parametrize(("count", "rate"), [(29, 0.1), (59, 0.05), (299, 0.01)])
def test_so_many_photos_guarantee_a_false_alarm_rate(count: int, rate: float) -> None:
    found = ReferenceReport.of(torch.eye(300)[:count], [0.2] * 16, [""] * count, InferenceConfig(), None)
    assert found.guaranteed_rate == pytest.approx(rate, abs=0.003)
    assert found.odd == (), "only sixteen were held out"
