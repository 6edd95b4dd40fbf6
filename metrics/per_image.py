"""The base of metrics that are a mean of one value per image."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanPerImage(Metric):
    """Mean of a value that every image has for itself; subclasses say which value.

    Sum and count are added over batches and processes, so the result does not depend on how images were spread.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def values(self, prediction: Tensor, target: Tensor) -> Tensor:
        """One value per item of the batch, float B."""
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        values = self.values(prediction, target)
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Mean over everything added so far."""
        return self.total / self.count
