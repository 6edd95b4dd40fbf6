"""Metrics that are a mean of one value per image."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanPerImage(Metric):
    """Mean of a value that every image has for itself.

    Sum and count are added over batches and processes, so the result does not depend on how images were spread.

    Args:
        value: takes predictions and targets of a batch, gives one number per image, float B.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        values = self.value(prediction, target)
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Mean over everything added so far."""
        return self.total / self.count
