"""Exponential moving average of the weights (EMA)."""

from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from run_state.lightning_internals import average_model, blend, copy


class WeightAverage(WeightAveraging):
    """Average the weights after every batch; validate the average, and keep it as `state_dict` of checkpoints.

    Checkpoints keep the weights in training as well, so that resuming is exact. After n batches the old average counts
    (1 + n) / (10 + n), at most `decay`: the initial weights are soon forgotten, however short the training. What a
    module names in `not_averaged` is copied. Lightning's `EMAWeightAveraging` has one decay from the first batch on,
    averages a discriminator as well, and makes a GPU wait in every batch.

    Args:
        decay: largest share of the old average in the new one, 0 up to, but not including, 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 up to, but not including, 1")
        super().__init__()
        self.decay, self._step = decay, 0
        # Tensors of the average, and those in training that they are made of: in every batch the same.
        self._blended: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._blended, self._copied = ([], []), ([], [])
        own = chain(pl_module.named_parameters(), pl_module.named_buffers())
        average_module = average_model(self).module
        averages = chain(average_module.parameters(), average_module.buffers())
        for (name, weight), average in zip(own, averages, strict=True):
            averaged = weight.is_floating_point() and not name.startswith(pl_module.not_averaged)  # type: ignore[arg-type]
            for tensors, tensor in zip(self._blended if averaged else self._copied, (average, weight), strict=True):
                tensors.append(tensor)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return  # in the middle of a gradient accumulation
        self._step = trainer.global_step
        before = trainer.global_step - 1
        share = min(self.decay, (1 + before) / (10 + before)) if before else 0.0
        blend(*self._blended, share)
        copy(*self._copied)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing yet: the checkpoint that is written at the end keeps the weights in training, too."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)  # the module becomes its average
