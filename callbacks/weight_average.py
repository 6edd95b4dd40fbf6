"""Exponential moving average of the weights (EMA)."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WeightAverage(WeightAveraging):
    """Lightning's average of the weights after every batch; validated, and kept as ``state_dict`` of checkpoints.

    The weights in training lie beside it in the checkpoint, so that resuming is exact. In the n-th update the old
    average counts (1 + n) / (10 + n), at most ``decay``: the initial weights are soon forgotten, however short the
    training. What a module names in ``not_averaged`` (prefixes of keys) is saved and left as it is trained, a
    discriminator for instance.

    Args:
        decay: largest share of the old average in the new one, 0 to 1.

    Raises:
        ValueError: ``decay`` is out of its range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, allowed are 0 up to, but not including, 1")

        def update(average: Tensor, current: Tensor, updates: Tensor) -> Tensor:
            if not current.is_floating_point():
                return current  # a counter
            share = ((1 + updates) / (10 + updates)).clamp(max=decay)  # stays on the device: nothing waits for it
            return torch.lerp(current, average, share.to(current.dtype))

        super().__init__(avg_fn=update)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Made before the module was moved, the average would stay behind, and every batch copy all weights to it.
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing yet: the checkpoint that is written at the end shall hold the weights in training, too."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept = {key: value.clone() for key, value in pl_module.state_dict().items() if _is_kept(pl_module, key)}
        super().on_train_end(trainer, pl_module)  # the module becomes its average
        pl_module.load_state_dict(kept, strict=False)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for key, value in checkpoint.get("current_model_state", {}).items():
            if _is_kept(pl_module, key):
                checkpoint["state_dict"][key] = value


def _is_kept(module: L.LightningModule, key: str) -> bool:
    return key.startswith(getattr(module, "not_averaged", ()))
