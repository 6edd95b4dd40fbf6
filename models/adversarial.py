"""Losses of a discriminator and of the generator that is to deceive it, from logits.

References:
    Goodfellow et al., 2014 (vanilla, the generator's non-saturating form); Mao et al., ICCV 2017 (least squares);
    Lim and Ye, 2017 (arXiv 1705.02894), hinge.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, relu

GANLoss = Literal["vanilla", "least_squares", "hinge"]


def discriminator_loss(kind: GANLoss, logits: Tensor, real: bool) -> Tensor:
    """How wrong the discriminator is about images that are all real or all generated; float32 scalar."""
    logits = logits.float()
    if kind == "hinge":
        return relu(1 - logits if real else 1 + logits).mean()
    return _distance(kind, logits, real)


def generator_loss(kind: GANLoss, logits: Tensor) -> Tensor:
    """How far generated images are from passing for real; float32 scalar."""
    logits = logits.float()
    if kind == "hinge":
        return -logits.mean()
    return _distance(kind, logits, real=True)


def _distance(kind: GANLoss, logits: Tensor, real: bool) -> Tensor:
    wanted = torch.full_like(logits, float(real))
    if kind == "vanilla":
        return binary_cross_entropy_with_logits(logits, wanted)
    return (logits - wanted).square().mean()
