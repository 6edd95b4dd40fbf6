"""Losses against PyTorch's own, against numbers worked out by hand, and the features that are compared."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.hourglass import FeedbackHourglass
from models.losses import (
    HourglassFeatures,
    adversarial_loss,
    dic_losses,
    multi_target_loss,
    perceptual_loss,
    soft_cross_entropy,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_cross_entropy_is_pytorchs(smoothing: float) -> None:
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(soft_cross_entropy(logits, targets, smoothing), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, 10 * targets, smoothing), expected)  # votes, not shares


def test_multi_target_loss_takes_the_best_accepted_class() -> None:
    # Probabilities 0.6, 0.3 and 0.1 (the other five: none); the second and third class are accepted.
    probabilities = torch.tensor([[0.6, 0.3, 0.1] + [1e-9] * 5])
    targets = torch.tensor([[0.001, 1.0, 1.0] + [0.001] * 5])
    assert multi_target_loss(probabilities.log(), targets).item() == pytest.approx(-math.log(0.3), abs=1e-5)
    # An unaccepted class with nearly all of the probability counts a thousandth.
    probabilities = torch.tensor([[1 - 1e-6, 1e-6] + [1e-9] * 6])
    targets = torch.tensor([[0.001, 1.0] + [0.001] * 6])
    assert multi_target_loss(probabilities.log(), targets).item() == pytest.approx(-math.log(0.001), abs=1e-4)


def test_losses_are_sums_over_steps_of_means() -> None:
    target, maps = torch.zeros(2, 3, 4, 4), torch.zeros(2, 68, 1, 1)
    pixel, heatmap = dic_losses([target + 0.5, target - 0.25], [maps + 2, maps + 1], target, maps)
    assert pixel.item() == 0.75 and heatmap.item() == 5.0


def test_adversarial_loss_is_the_cross_entropy_of_the_probability() -> None:
    logits = torch.tensor([[0.0], [math.log(3.0)]])  # probabilities 1/2 and 3/4
    assert adversarial_loss(logits, real=True).item() == pytest.approx(math.log(8 / 3) / 2)
    assert adversarial_loss(logits, real=False).item() == pytest.approx(math.log(8.0) / 2)


class Halves(nn.Module):
    """Two feature maps, the second twice the first."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, 2 * image]


def test_loss_is_the_sum_of_the_mean_distances_and_reaches_the_image_alone() -> None:
    image, target = torch.zeros(1, 3, 8, 8, requires_grad=True), torch.ones(1, 3, 8, 8, requires_grad=True)
    loss = perceptual_loss(Halves(), image, target)
    assert loss.item() == 3.0
    loss.backward()
    assert image.grad is not None and target.grad is None
    assert image.grad.sum().item() == pytest.approx(-3.0)


def test_hourglass_features_are_those_of_its_first_call() -> None:
    torch.manual_seed(0)
    hourglass, image = FeedbackHourglass(8), torch.randn(2, 3, 64, 64)
    shallow, deep = HourglassFeatures(hourglass)(image)
    heatmaps, hidden = hourglass(image)
    assert torch.equal(shallow, hourglass.pre_conv_block(image))
    assert torch.equal(deep[:, 8:], hidden) and torch.equal(hourglass.hg_conv_out(deep[:, :8]), heatmaps)
