"""Exponential moving average of the weights (EMA)."""

from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class WeightAverage(WeightAveraging):
    """Average the weights after every batch; validate the average, and keep it as `state_dict` of checkpoints.

    The weights in training lie beside it in the checkpoint, so that resuming is exact. In the n-th update the old
    average counts (1 + n) / (10 + n), at most `decay`: the initial weights are soon forgotten, however short the
    training. Lightning's `EMAWeightAveraging` has one decay from the first batch on, averages a discriminator as well,
    and makes a GPU wait in every batch. What a module names in `not_averaged` is saved and left as it is trained.

    Args:
        decay: largest share of the old average in the new one, 0 up to, but not including, 1.

    Raises:
        ValueError: `decay` is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected 0 up to, but not including, 1")
        super().__init__()
        self.decay = decay
        self._updates = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Made before the module was moved, the average would stay behind, and every batch copy all weights to it.
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Read once: read in every batch, as `AveragedModel.update_parameters` does, it would make a GPU wait.
        self._updates = int(self._average_model.n_averaged)  # type: ignore[union-attr]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._average_model is None or trainer.global_step <= self._latest_update_step:
            return  # in the middle of a gradient accumulation
        share = min(self.decay, (1 + self._updates) / (10 + self._updates)) if self._updates else 0.0
        pairs = list(zip(_tensors(self._average_model.module), _tensors(pl_module), strict=True))
        averages, weights = zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True)
        torch._foreach_copy_(averages, torch._foreach_lerp(weights, averages, share))
        for average, counter in pairs:
            if not average.is_floating_point():
                average.copy_(counter)
        self._updates += 1
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing yet: the checkpoint that is written at the end keeps the weights in training, too."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept = {key: value.clone() for key, value in pl_module.state_dict().items() if _is_kept(pl_module, key)}
        super().on_train_end(trainer, pl_module)  # the module becomes its average
        pl_module.load_state_dict(kept, strict=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for key, value in checkpoint.get("current_model_state", {}).items():
            if _is_kept(pl_module, key):
                checkpoint["state_dict"][key] = value


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))


def _is_kept(module: L.LightningModule, key: str) -> bool:
    return key.startswith(module.not_averaged)  # type: ignore[arg-type]
