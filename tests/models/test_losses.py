"""The three adversarial games, against numbers worked out by hand."""

import math

import pytest
import torch

from models.losses import GANLoss, discriminator_loss, generator_loss

LOGITS = torch.tensor([[0.0], [math.log(3.0)]])  # probabilities 1/2 and 3/4


@pytest.mark.parametrize(
    ("kind", "real", "fake", "generator"),
    [
        ("vanilla", math.log(8 / 3) / 2, math.log(8.0) / 2, math.log(8 / 3) / 2),
        ("least_squares", (1 + (math.log(3) - 1) ** 2) / 2, math.log(3) ** 2 / 2, (1 + (math.log(3) - 1) ** 2) / 2),
        ("hinge", 0.5, (1 + 1 + math.log(3)) / 2, -math.log(3) / 2),
    ],
)
def test_losses(kind: GANLoss, real: float, fake: float, generator: float) -> None:
    assert discriminator_loss(kind, LOGITS, real=True).item() == pytest.approx(real)
    assert discriminator_loss(kind, LOGITS, real=False).item() == pytest.approx(fake)
    assert generator_loss(kind, LOGITS).item() == pytest.approx(generator)
