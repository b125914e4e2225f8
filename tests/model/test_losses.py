"""The losses against numbers that were worked out by hand (specification 7)."""

import math

import pytest
import torch
import torch.nn.functional as F

from anomalygpt.model.losses import IGNORE_INDEX, answer_loss, dice_loss, focal_loss, pixel_loss


def states(abnormal: torch.Tensor) -> torch.Tensor:
    """(B, S, S) probabilities of abnormal -> (B, 2, S, S)."""
    return torch.stack([1 - abnormal, abnormal], dim=1)


def test_focal_loss_of_two_pixels_and_its_smoothing() -> None:
    probabilities = states(torch.tensor([[[0.9, 0.4]]]))  # abnormal with 0.9 and 0.4
    target = torch.tensor([[[[1.0, 0.0]]]])  # the first one is, so p = 0.9 and 0.6
    by_hand = (0.1**2 * -math.log(0.9) + 0.4**2 * -math.log(0.6)) / 2
    assert float(focal_loss(probabilities, target)) == pytest.approx(by_hand, rel=1e-3)
    # p = sum of clamp(one-hot, 1e-5, 1 - 1e-5) x probability, + 1e-5: certain and wrong stays finite.
    p = 1e-5 * 1.0 + (1 - 1e-5) * 0.0 + 1e-5
    loss = focal_loss(states(torch.tensor([[[0.0]]])), torch.tensor([[[[1.0]]]]))
    assert float(loss) == pytest.approx((1 - p) ** 2 * -math.log(p), rel=1e-5)


@pytest.mark.parametrize(
    ("abnormal", "target", "by_hand"),
    [
        ([[0.5, 1.0], [0.0, 0.25]], [[1.0, 1.0], [0.0, 0.0]], 1 - (2 * 1.5 + 1) / (1.75 + 2 + 1)),
        ([[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], 1 - 5 / 7),  # the mean of the rows' own would be 1/3
        ([[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2, 0),
    ],
)
def test_dice_loss_sums_over_an_image(abnormal: list, target: list, by_hand: float) -> None:
    assert float(dice_loss(torch.tensor([abnormal]), torch.tensor([[target]]))) == pytest.approx(by_hand)


def test_dice_averages_over_the_images_of_a_batch() -> None:
    torch.manual_seed(0)
    abnormal, target = torch.rand(3, 4, 4), (torch.rand(3, 1, 4, 4) > 0.7).float()
    each = [float(dice_loss(abnormal[[i]], target[[i]])) for i in range(3)]
    assert float(dice_loss(abnormal, target)) == pytest.approx(sum(each) / 3, rel=1e-5)


def test_pixel_loss_adds_up_the_layers() -> None:
    torch.manual_seed(1)
    layers = torch.randn(4, 2, 2, 8, 8).softmax(dim=2)
    target = (torch.rand(2, 1, 8, 8) > 0.5).float()
    focal, dice = pixel_loss(layers, target)
    assert float(focal) == pytest.approx(sum(float(focal_loss(layer, target)) for layer in layers), rel=1e-5)
    assert float(dice) == pytest.approx(sum(float(dice_loss(layer[:, 1], target)) for layer in layers), rel=1e-5)


def test_answer_loss_of_one_token() -> None:
    logits = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[IGNORE_INDEX, 2]])
    assert float(answer_loss(logits, labels)) == pytest.approx(-math.log(math.e**3 / (math.e + math.e**2 + math.e**3)))


def test_answer_loss_averages_over_all_answer_tokens_of_the_batch() -> None:
    """A conversation with three answer tokens weighs three times as much as one with a single token."""
    torch.manual_seed(2)
    logits = torch.randn(2, 5, 7)
    labels = torch.full((2, 5), IGNORE_INDEX)
    labels[0, 2:] = torch.tensor([1, 2, 3])
    labels[1, 4] = 5
    long = F.cross_entropy(logits[0, 1:4], labels[0, 2:], reduction="sum")
    short = F.cross_entropy(logits[1, 3:4], labels[1, 4:], reduction="sum")
    assert float(answer_loss(logits, labels)) == pytest.approx(float(long + short) / 4, rel=1e-5)
    assert float(answer_loss(logits, labels)) != pytest.approx(float(long / 3 + short) / 2, rel=1e-3)


def test_ignored_tokens_do_not_touch_the_answer_loss() -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 6, 7)
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 4, IGNORE_INDEX, 1, IGNORE_INDEX]])
    changed = logits.clone()
    changed[:, [0, 2, 4, 5]] = 100 * torch.randn(1, 4, 7)  # only positions 1 and 3 predict a counted token
    assert float(answer_loss(changed, labels)) == float(answer_loss(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_batch_without_answer_tokens_costs_nothing_and_still_has_a_gradient(dtype: torch.dtype) -> None:
    logits = torch.full((1, 2, 32000), 30.0, dtype=dtype, requires_grad=True)  # their sum is beyond fp16
    loss = answer_loss(logits, torch.full((1, 2), IGNORE_INDEX))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
